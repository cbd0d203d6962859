"""Loads Aravis when a camera needs it, and lists the cameras that Aravis sees."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

from edge.base.errors import CameraError

INSTALL = ("On Debian and Ubuntu: `apt-get install gir1.2-aravis-0.8 libgirepository1.0-dev libcairo2-dev gcc "
           "pkg-config python3-dev`, then `pip install 'lineside[genicam]'`.")
_LISTING = threading.Lock()  # Aravis has one device list for the whole process, and an update changes its indices


@dataclass(frozen=True)
class Device:
    """A camera in the list of Aravis."""

    id: str
    serial: str
    physical: str  # for example, its MAC address
    vendor: str
    model: str
    address: str
    protocol: str

    @property
    def key(self) -> str:
        """What names it in the line file."""
        return self.serial or self.id

    def __str__(self) -> str:
        return f"{self.key} ({self.vendor} {self.model} at {self.address})"


def load_aravis() -> tuple[Any, Any]:
    """The modules Aravis and GLib. Raises CameraError if they are not installed."""
    try:
        import gi

        gi.require_version("Aravis", "0.8")
        from gi.repository import Aravis, GLib
    except (ImportError, ValueError) as error:
        raise CameraError('cameras of kind "genicam" need Aravis 0.8 and PyGObject', got=error, next=INSTALL) from error
    return Aravis, GLib


def list_devices() -> list[Device]:
    """All cameras that Aravis sees now. Takes about a second. Raises CameraError without Aravis."""
    aravis, _ = load_aravis()
    with _LISTING:
        aravis.update_device_list()
        getters = (aravis.get_device_id, aravis.get_device_serial_nbr, aravis.get_device_physical_id,
                   aravis.get_device_vendor, aravis.get_device_model, aravis.get_device_address,
                   aravis.get_device_protocol)
        return [Device(*(get(i) or "" for get in getters)) for i in range(aravis.get_n_devices())]


def find_device(serial: str) -> str:
    """The Aravis id of the camera with this serial number, id, physical id or IP address; for "", of the only camera.

    An IP address that the search did not find is returned unchanged: the camera may be in another network. Raises
    CameraError with a list of the cameras if not exactly one fits.
    """
    devices = list_devices()
    chosen = [device for device in devices
              if not serial or serial in (device.serial, device.id, device.physical, device.address)]
    if len(chosen) == 1:
        return chosen[0].id
    if not chosen and re.fullmatch(r"\d+(\.\d+){3}", serial):
        return serial
    listed = ", ".join(map(str, devices)) or "no camera"
    if not devices:
        raise CameraError(f"camera {serial} is not there" if serial else "no camera is there", got=listed,
                          expected="a GigE Vision or USB3 Vision camera",
                          next="Check power and cable, and that camera and machine have addresses in one network.")
    if not chosen:
        what = f"camera {serial} is not there"
    else:
        what = f"more than one camera is {serial}" if serial else "there is more than one camera"
    raise CameraError(what, got=listed, expected="one of them as `serial` under [camera]")

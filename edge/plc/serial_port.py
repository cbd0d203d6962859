"""What the kinds of PLC link on a serial port share: their part of the line file's section, and what `lineside doctor`
finds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge.base.finding import Finding, read_system_file
from edge.plc.section import PlcSection

PATTERNS = ("ttyUSB*", "ttyACM*", "ttyTHS*", "ttyS*")
BITS = 10  # of a byte on the wire without parity: start bit, 8 data bits, stop bit


class SerialSection(PlcSection):
    """[plc] of a link on a serial port."""

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterable[Finding]:
        """The serial ports, and whether this user may open them."""
        return _examine_ports(root)


def _examine_ports(root: Path) -> Iterator[Finding]:
    ports = [path for pattern in PATTERNS for path in sorted((root / "dev").glob(pattern)) if _exists(root, path.name)]
    if not ports:
        yield Finding("serial ports", "missing", "none",
                      "Plug in the converter to the PLC; dmesg says whether it is seen.")
    for path in ports:
        what = f"serial port {path.name}"
        if not os.access(path, os.R_OK | os.W_OK):
            yield Finding(what, "missing", "this user may not open it",
                          "sudo usermod -aG dialout $USER, and log in again")
            continue
        timer = read_system_file(root / "sys/bus/usb-serial/devices" / path.name / "latency_timer")
        if timer.isdigit() and int(timer) > 1:
            yield Finding(what, "improvable", f"an FTDI chip that holds received bytes back for {timer} ms",
                          f"echo 1 | sudo tee /sys/bus/usb-serial/devices/{path.name}/latency_timer; "
                          "permanently by the udev rule in deploy/")
        else:
            yield Finding(what, "ok", "this user may open it" + (", latency timer 1 ms" if timer else ""))


def _exists(root: Path, name: str) -> bool:
    """Whether there is hardware behind a device file: Linux makes 32 ttyS* whether or not there is."""
    return not name.startswith("ttyS") or read_system_file(root / "sys/class/tty" / name / "type") not in ("", "0")

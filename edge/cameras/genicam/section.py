"""Camera `genicam`: its section of the line file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from edge.base.finding import Finding
from edge.cameras.camera import FoundCamera
from edge.cameras.genicam.options import GenicamOptions
from edge.cameras.live import LiveCamera


class GenicamSection(GenicamOptions):
    """[camera] kind = "genicam": GigE Vision or USB3 Vision, by Aravis"""

    def make(self, folder: Path) -> LiveCamera:
        """The camera, not yet open."""
        from edge.cameras.genicam.driver import GenicamDriver

        return LiveCamera(GenicamDriver(self), self.trigger, self.window_ms / 1000)

    @property
    def no_frame_advice(self) -> str | None:
        """What to check when no frame came."""
        if self.trigger != "hardware":
            return None
        return (f"no frame came: nothing triggered the camera. Is the sensor connected to {self.trigger_source}, as "
                "`trigger_source` says? --free lets the camera run without it")

    def loss_advice(self, counters: Mapping[str, int]) -> str:
        """Why frames were lost, and what to change."""
        packets = ""
        if "missing_packets" in counters:
            packets = f"{counters['missing_packets']} packets lost, {counters.get('resent_packets', 0)} resent; "
        size = "allow jumbo frames on network card, switch and camera (ip link set DEV mtu 9000)"
        if self.packet_size:
            size = "allow jumbo frames (ip link set DEV mtu 9000) and leave packet_size at 0"
        resend = "" if self.resend else ", set resend = true"
        return (f"{packets}{size}{resend}, enlarge the socket buffer (sudo sysctl -w net.core.rmem_max=33554432), and "
                "divide the bandwidth between the cameras with bandwidth_mb_s")

    @classmethod
    def discover(cls) -> list[FoundCamera]:
        """All GigE Vision and USB3 Vision cameras that this machine sees. Raises CameraError without Aravis."""
        from edge.cameras.genicam.aravis import list_devices

        return [FoundCamera("genicam", device.key, device.vendor, device.model, device.address, device.protocol)
                for device in list_devices()]

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterator[Finding]:
        """Whether Aravis is installed."""
        try:
            import_module("gi").require_version("Aravis", "0.8")
            yield Finding("Aravis", "ok", "0.8: GigE Vision and USB3 Vision cameras can be used")
        except (ImportError, ValueError) as error:
            yield Finding("Aravis", "improvable", str(error),
                          "GigE Vision and USB3 Vision cameras need it: sudo apt-get install gir1.2-aravis-0.8, then "
                          "pip install 'lineside[genicam]'")

"""What every camera does. Every wait has a timeout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.part.frame import CameraFrame


@dataclass(frozen=True)
class FoundCamera:
    """A camera that this machine sees."""

    kind: str  # in the line file
    key: str  # what names it in the line file: its serial number, or its device
    vendor: str
    model: str
    address: str  # IP address, or USB bus
    text: str = ""  # a remark, such as why it cannot be used


class Camera(Protocol):
    """A camera that gives a frame for each trigger."""

    def open(self) -> None:
        """Open the camera. Raises CameraError."""

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        """Take a frame for a trigger. Never blocks. Called from a thread of its own.

        trigger: the line's trigger count. part: the PLC's part id. encoder: counts, None without an encoder. at: when
        the trigger came, s of ``time.monotonic``.
        """

    def next(self, timeout: float) -> CameraFrame | None:
        """The next frame in order of exposure, or None after ``timeout`` s."""

    def settle(self, camera: int) -> None:
        """Resynchronise: it is no longer certain which frame belongs to which trigger. May be called from any thread.

        The camera takes no frame until none is on its way, then starts a new ``connection``. camera: which of several.
        """

    def counters(self) -> dict[str, int]:
        """Frame counts by name, such as those lost or incomplete."""

    def close(self) -> None:
        """Free the camera."""

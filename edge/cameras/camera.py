"""What every camera does. Every wait has a timeout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.part.frame import CameraFrame


@dataclass(frozen=True)
class FoundCamera:
    """A camera that this machine sees."""

    kind: str  # of the line file
    key: str  # what the line file names it by: its serial number, or its device
    vendor: str
    model: str
    address: str  # IP address, or the bus
    text: str = ""  # what else is to be known, such as why it cannot be used


class Camera(Protocol):
    """A triggered camera."""

    def open(self) -> None:
        """Raises CameraError when it cannot be opened."""

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        """Take a frame for a trigger that came at ``at``; returns at once. Called from a thread of its own."""

    def next(self, timeout: float) -> CameraFrame | None:
        """The next frame in order of exposure, or None after ``timeout`` s."""

    def settle(self, camera: int) -> None:
        """It is not certain any more which frame is of which trigger: begin anew. ``camera``: which one, of several. Any thread."""

    def counters(self) -> dict[str, int]:
        """What became of frames that nobody got, by name."""

    def close(self) -> None:
        """Free the camera."""

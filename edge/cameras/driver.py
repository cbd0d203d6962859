"""A driver: what a kind of camera does that is there. Users write their own for a vendor's SDK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a driver's file need not load arrays before it is used
    from edge.images.frames import Frame


@dataclass(frozen=True)
class Grabbed:
    """What a driver got. An image that is not whole is None."""

    image: Frame | None
    frame_id: int  # as the camera counts
    device_time: float | None = None  # s of the camera's clock
    encoder: int | None = None
    exposure_us: float | None = None
    text: str = ""  # what is missing, or the frame's name


class Driver(Protocol):
    """A kind of camera. `trigger` is called from a thread of its own, all else from one thread at a time."""

    name: str  # for messages
    ids: tuple[int, int]  # the lowest and the highest frame id; after the highest one comes the lowest

    def connect(self) -> None:
        """Open the camera, set it up and let it run. Raises CameraError."""

    def trigger(self) -> None:
        """Take a frame now. Raises CameraError."""

    def grab(self, timeout: float) -> Grabbed | None:
        """The next frame, or None after ``timeout`` s. Raises CameraError when the camera is gone."""

    def statistics(self) -> dict[str, int]:
        """What the driver counted since it connected, by name, such as packets that were sent again."""

    def disconnect(self) -> None:
        """Free the camera, whatever state it is in."""

"""A driver connects, triggers and grabs from a physical camera. Users write their own for a vendor's SDK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # so that numpy is loaded only when the driver's own file loads it
    from edge.images.frames import Frame


@dataclass(frozen=True)
class Grabbed:
    """What a driver received from its camera."""

    image: Frame | None  # uint8 [H, W, 1] or [H, W, 3] (RGB); None for an incomplete image
    frame_id: int  # as the camera counts
    device_time: float | None = None  # s of the camera's clock
    encoder: int | None = None  # counts
    exposure_us: float | None = None
    text: str = ""  # the frame's name, or what is missing from an incomplete one


class Driver(Protocol):
    """A driver for one camera. `trigger` is called from its own thread, all other methods from one thread at a time."""

    name: str  # for messages
    ids: tuple[int, int]  # the lowest and the highest frame id; after the highest one comes the lowest again

    def connect(self) -> None:
        """Open the camera, configure it and start it. Raises CameraError."""

    def trigger(self) -> None:
        """Take a frame now. Raises CameraError."""

    def grab(self, timeout: float) -> Grabbed | None:
        """The next frame, or None after ``timeout`` s. Raises CameraError if the camera is gone."""

    def statistics(self) -> dict[str, int]:
        """What the driver counted since it connected, by name, such as resent packets."""

    def disconnect(self) -> None:
        """Free the camera, whatever state it is in."""

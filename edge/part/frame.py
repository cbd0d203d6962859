"""A frame on its way through the line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.part.verdict import Cause

if TYPE_CHECKING:  # the command line imports this, and has to answer at once
    from edge.images.frames import Frame


@dataclass(frozen=True)
class CameraFrame:
    """What a camera delivered for one trigger. ``image`` is None where it could not; then ``cause`` and ``text`` say why."""

    trigger: int  # the line's count of triggers, as given to `expose`; 0: the camera cannot say, see edge.cameras.matching
    part: int
    frame_id: int  # counts the exposures of a session, and does not wrap
    host_time: float  # s of time.monotonic: when it was exposed; NaN: of a frame that was lost
    image: Frame | None  # a view: the camera does not write into it any more
    source: str = ""  # file name, where there is one
    device_time: float | None = None  # s of the camera's clock
    encoder: int | None = None
    complete: bool = True  # else the image is None: what is not whole is never inspected
    cause: Cause | None = None
    text: str = ""
    camera: int = 0  # which of the line's
    session: int = 0  # a camera that comes back begins a new one: frame ids of two sessions have nothing in common
    exposed: bool = True  # False: the trigger was never given to the camera, and so got no frame id
    exposure_us: float | None = None  # where the camera says it
    lost: int = 0  # frames between the one before it and this, by their ids, that have not come

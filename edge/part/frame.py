"""A frame on its way through the line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.part.verdict import Cause

if TYPE_CHECKING:  # the command line imports this, and has to answer at once
    from edge.images.frames import Frame


@dataclass(frozen=True)
class CameraFrame:
    """What a camera delivered for one trigger. Without an image, ``cause`` and ``text`` say why."""

    trigger: int  # the line's trigger count, as given to `expose`; 0: not known yet, see edge.cameras.matching
    part: int
    frame_id: int  # counts the exposures of a connection, and does not wrap
    host_time: float  # s of time.monotonic when it was exposed; NaN for a lost frame
    image: Frame | None  # a view that the camera no longer writes into
    source: str = ""  # its name, such as a file name
    device_time: float | None = None  # s of the camera's clock
    encoder: int | None = None
    complete: bool = True  # False: data was lost, so the image is None; an incomplete image is never inspected
    cause: Cause | None = None
    text: str = ""
    camera: int = 0  # index of the line's camera
    connection: int = 0  # rises when the camera reconnects or resynchronises; ids then start a new count
    exposed: bool = True  # False: the camera was never triggered, so there is no frame id
    exposure_us: float | None = None  # if the camera says it
    lost: int = 0  # missing frame ids just before this one

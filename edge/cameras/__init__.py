"""Cameras: one file for each kind, all behind the same small protocol. Every wait has a timeout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge.verdict import Cause

if TYPE_CHECKING:  # the command line imports this package, and has to answer at once
    from edge.line_file import CameraKind
    from edge.prepare import Frame


@dataclass(frozen=True)
class CameraFrame:
    """What a camera delivered for one trigger. ``image`` is None where it could not; then ``cause`` and ``text`` say why."""

    trigger: int  # the line's count of triggers, as given to `expose`; 0: the camera cannot say, see edge.matching
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


def make_camera(sections: Sequence[CameraKind], folder: Path) -> Camera:
    """The camera of a line file in ``folder``, or all its cameras as one; not opened yet. What a kind needs is loaded here."""
    from edge.cameras.group import CameraGroup

    cameras = [_make_one(section, folder) for section in sections]
    return cameras[0] if len(cameras) == 1 else CameraGroup(cameras)


def _make_one(section: CameraKind, folder: Path) -> Camera:
    if section.kind == "folder":
        from edge.cameras.folder import FolderCamera

        return FolderCamera(folder / section.path, section.loop, section.preload, section.match == "trigger")
    from edge.cameras.live import LiveCamera

    if section.kind == "genicam":
        from edge.cameras.genicam import GenicamDriver

        return LiveCamera(GenicamDriver(section), section.trigger, section.window_ms / 1000)
    if section.kind == "video":
        from edge.cameras.video import make_video

        return make_video(section, folder)
    from edge.cameras.custom import load_driver

    return LiveCamera(load_driver(section, folder), section.trigger, section.window_ms / 1000)

"""Cameras: one file for each kind, all behind the same small protocol. Every wait has a timeout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge.line_file import FolderSection
from edge.prepare import Frame
from edge.verdict import Cause


@dataclass(frozen=True)
class CameraFrame:
    """What a camera delivered for one trigger. ``image`` is None where it could not; then ``cause`` and ``text`` say why."""

    trigger: int  # the line's count of triggers, as given to `expose`; 0: the camera cannot say, see edge.matching
    part: int
    frame_id: int  # counts exposures, and does not wrap
    host_time: float  # s of time.monotonic: when the part stood before the camera
    image: Frame | None  # a view: the camera does not write into it any more
    source: str = ""  # file name, where there is one
    device_time: float | None = None  # s of the camera's clock
    encoder: int | None = None
    complete: bool = True
    cause: Cause | None = None
    text: str = ""
    camera: int = 0  # which of the line's


class Camera(Protocol):
    """A triggered camera."""

    def open(self) -> None:
        """Raises CameraError when it cannot be opened."""

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        """Take a frame for a trigger that came at ``at``; returns at once. Called from a thread of its own."""

    def next(self, timeout: float) -> CameraFrame | None:
        """The next frame in order of exposure, or None after ``timeout`` s."""

    def counters(self) -> dict[str, int]:
        """What became of frames that nobody got, by name."""

    def close(self) -> None:
        """Free the camera."""


def make_camera(sections: Sequence[FolderSection], folder: Path) -> Camera:
    """The camera of a line file in ``folder``, or all its cameras as one; not opened yet. What a kind needs is loaded here."""
    from edge.cameras.folder import FolderCamera
    from edge.cameras.group import CameraGroup

    cameras = [FolderCamera(folder / section.path, section.loop, section.preload, section.match == "trigger") for section in sections]
    return cameras[0] if len(cameras) == 1 else CameraGroup(cameras)

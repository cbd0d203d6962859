"""The kinds of camera, each imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cameras.camera import Camera

if TYPE_CHECKING:
    from edge.line_file import CameraKind


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
        from edge.cameras.genicam.driver import GenicamDriver

        return LiveCamera(GenicamDriver(section), section.trigger, section.window_ms / 1000)
    if section.kind == "video":
        from edge.cameras.video import make_video

        return make_video(section, folder)
    from edge.cameras.custom import load_driver

    return LiveCamera(load_driver(section, folder), section.trigger, section.window_ms / 1000)

"""The kinds of camera. A new one is a file with its section class, and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.cameras.camera import Camera
from edge.cameras.group import CameraGroup
from edge.cameras.section import CameraSection

CAMERAS = {
    "folder": "edge.cameras.folder:FolderSection",
    "genicam": "edge.cameras.genicam.section:GenicamSection",
    "video": "edge.cameras.video.section:VideoSection",
    "custom": "edge.cameras.custom.section:CustomSection",
}


def make_camera(sections: Sequence[CameraSection], folder: Path) -> Camera:
    """The camera of a line file in ``folder``, or all its cameras as one; not yet open. Raises CameraError."""
    cameras = [section.make(folder) for section in sections]
    return cameras[0] if len(cameras) == 1 else CameraGroup(cameras)

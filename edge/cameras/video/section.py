"""Camera `video`: its section of the line file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from typing_extensions import Self

from edge.base.finding import Finding, is_jetson
from edge.cameras.camera import Camera, FoundCamera
from edge.cameras.live import LiveCamera
from edge.cameras.video.devices import find_devices
from edge.cameras.video.options import VideoOptions


class VideoSection(VideoOptions):
    """[camera] kind = "video": what OpenCV reads"""

    def make(self, folder: Path) -> Camera:
        """The camera, not yet open."""
        from edge.cameras.video.opencv import VideoDriver, VideoFile

        if self.is_file:
            return VideoFile(self, folder / self.source)
        return LiveCamera(VideoDriver(self), "off", self.window_ms / 1000)

    @property
    def line_triggers(self) -> bool:
        """Whether the line triggers the camera."""
        return self.is_file

    @property
    def runs_free(self) -> bool:
        """Whether the camera takes frames at its own rate."""
        return not self.is_file

    def endless(self) -> Self:
        """The same camera, but a file repeats."""
        return self.model_copy(update={"loop": True})

    @classmethod
    def discover(cls) -> list[FoundCamera]:
        """The V4L2 devices of this machine."""
        return find_devices()

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterator[Finding]:
        """Whether OpenCV was built with GStreamer, which CSI cameras and pipelines need."""
        import cv2

        jetson = is_jetson(root)
        lines = [line.partition(":")[2].strip() for line in cv2.getBuildInformation().splitlines()
                 if "GStreamer:" in line]
        version = lines[0] if lines else "NO"
        if not version.startswith("NO"):
            yield Finding("OpenCV with GStreamer", "ok", version)
            return
        what = "CSI cameras need" if jetson else "A pipeline as `source` of a video needs"
        yield Finding("OpenCV with GStreamer", "improvable", version,
                      f"{what} the system's OpenCV: pip uninstall opencv-python-headless, sudo apt-get install "
                      "python3-opencv, and a virtual environment with --system-site-packages."
                      + (" See docs/jetson.md." if jetson else ""))

"""Camera `video`: its section of the line file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from edge.base.finding import Finding, is_jetson
from edge.cameras.camera import Camera, FoundCamera
from edge.cameras.live import LiveCamera
from edge.cameras.section import CameraSection
from edge.cameras.video.devices import find_devices


class VideoSection(CameraSection):
    """[camera] kind = "video": what OpenCV reads"""

    key = "source"
    kind: Literal["video"]
    source: str  # /dev/video0, rtsp://..., a file, or a GStreamer pipeline
    backend: Literal["auto", "v4l2", "ffmpeg", "gstreamer"] = "auto"
    loop: bool = False  # a file: start again at its end
    grey: bool = False  # convert colour to grey
    properties: dict[str, float] = Field(default_factory=dict)  # FRAME_WIDTH and the like, as OpenCV names them

    @model_validator(mode="after")
    def _by_trigger(self) -> Self:
        if self.match != "trigger":
            raise ValueError('match = "trigger": a video has neither frame ids nor encoder counts')
        return self

    @property
    def is_file(self) -> bool:
        """Whether it plays a file, one frame per trigger. Devices, streams and pipelines run free."""
        return "://" not in self.source and " ! " not in self.source and not self.source.startswith("/dev/")

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

"""The options of a camera of kind `video`: what OpenCV is asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from edge.cameras.section import CameraSection


class VideoOptions(CameraSection):
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

"""The options of a camera of kind `genicam`: what its driver is set up by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edge.cameras.section import LiveSection


class GenicamOptions(LiveSection):
    """[camera] kind = "genicam": GigE Vision or USB3 Vision, by Aravis"""

    key = "serial"
    kind: Literal["genicam"]
    serial: str = ""  # of the camera, or its id or IP address; not needed with a single camera
    trigger_source: str = "Line1"  # trigger = "hardware"
    exposure_us: float | None = Field(default=None, gt=0)
    gain: float | None = None
    pixel_format: str | None = None
    roi: list[int] | None = Field(default=None, min_length=4, max_length=4)  # x, y, width, height in px
    frame_rate: float | None = Field(default=None, gt=0)  # frames per second, trigger = "off"
    packet_size: int = Field(default=0, ge=0, le=16_000)  # bytes; 0: the largest that the network can carry
    bandwidth_mb_s: float = Field(default=0, ge=0)  # limit of this camera; 0: unchanged
    resend: bool = True  # request lost packets again
    chunks: bool = True  # send frame id, time, exposure and encoder count with each frame, if the camera can
    features: dict[str, bool | int | float | str] = Field(default_factory=dict)  # any others, by SFNC name

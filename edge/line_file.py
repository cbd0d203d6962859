"""The line file: everything about one line in TOML. Unknown keys are forbidden; paths are relative to the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edge.base.errors import InputError
from edge.base.settings import Settings, read_toml, validate
from edge.line_control.parts import BeltTiming
from edge.plc.modbus.registers import FROM_PLC_LENGTH, TO_PLC

Match = Literal["trigger", "frame-id", "encoder"]
CameraTrigger = Literal["software", "hardware", "off"]


def without_password(text: str) -> str:
    """A text as it may be shown or given away: without user and password in its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


class LineSection(Settings):
    """[line]"""

    name: str
    bundle: str
    mode: Literal["latency", "throughput"] = "latency"  # each verdict as soon as possible, or as many as possible
    threads: int = Field(default=0, ge=0, le=256)  # of the engine; 0: as many as there are cores


class CameraSection(Settings):
    """What all cameras have."""

    match: Match = "trigger"  # how a frame's part is known
    window_counts: int = Field(default=0, ge=0, lt=1 << 30)  # encoder counts between a part's trigger and its frame, at most
    window_ms: float = Field(default=30, gt=0, le=10_000)  # from a trigger to its exposure, at most

    @model_validator(mode="after")
    def _window(self) -> CameraSection:
        if (self.match == "encoder") != (self.window_counts > 0):
            raise ValueError('window_counts above 0 together with match = "encoder", and only then')
        return self


class FolderSection(CameraSection):
    """[camera]"""

    kind: Literal["folder"]
    path: str
    loop: bool = False
    preload: bool = False  # read all images before the line starts, and keep them in memory


class LiveSection(CameraSection):
    """What a camera has that the line or a sensor triggers."""

    trigger: CameraTrigger = "software"  # by the line; by a sensor; runs free, and the first frame after a trigger is taken

    @model_validator(mode="before")
    @classmethod
    def _by_id(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("trigger") == "hardware":
            return {"match": "frame-id", **given}
        return given

    @model_validator(mode="after")
    def _who_triggers(self) -> LiveSection:
        if self.trigger == "hardware" and self.match == "trigger":
            raise ValueError('match = "frame-id" or "encoder" with trigger = "hardware": the camera does not know the line\'s triggers')
        if self.trigger == "off" and self.match != "trigger":
            raise ValueError('match = "trigger" with trigger = "off"')
        return self


class GenicamSection(LiveSection):
    """[camera] kind = "genicam": GigE Vision or USB3 Vision, by Aravis"""

    kind: Literal["genicam"]
    serial: str = ""  # of the camera, or its id or IP address; may be left out where there is one
    trigger_source: str = "Line1"  # trigger = "hardware"
    exposure_us: float | None = Field(default=None, gt=0)
    gain: float | None = None
    pixel_format: str | None = None
    roi: list[int] | None = Field(default=None, min_length=4, max_length=4)  # x, y, width, height in px
    frame_rate: float | None = Field(default=None, gt=0)  # frames a second, trigger = "off"
    packet_size: int = Field(default=0, ge=0, le=16_000)  # bytes; 0: the largest that the network carries
    bandwidth_mb_s: float = Field(default=0, ge=0)  # of this camera; 0: as the camera has it
    resend: bool = True  # ask for lost packets again
    chunks: bool = True  # frame id, time, exposure and encoder count in each frame, where the camera has them
    features: dict[str, bool | int | float | str] = Field(default_factory=dict)  # any other, by SFNC names


class VideoSection(CameraSection):
    """[camera] kind = "video": what OpenCV reads"""

    kind: Literal["video"]
    source: str  # /dev/video0, rtsp://..., a file, or a GStreamer pipeline
    backend: Literal["auto", "v4l2", "ffmpeg", "gstreamer"] = "auto"
    loop: bool = False  # a file: begin again at its end
    grey: bool = False  # colour becomes grey
    properties: dict[str, float] = Field(default_factory=dict)  # FRAME_WIDTH and the like, as OpenCV names them

    @model_validator(mode="after")
    def _by_trigger(self) -> VideoSection:
        if self.match != "trigger":
            raise ValueError('match = "trigger": a video has neither frame ids nor encoder counts')
        return self


class CustomSection(LiveSection):
    """[camera] kind = "custom": a driver of your own"""

    kind: Literal["custom"]
    driver: str  # FILE.py:CLASS, see docs/cameras.md
    options: dict[str, Any] = Field(default_factory=dict)  # what its class takes


CameraKind = FolderSection | GenicamSection | VideoSection | CustomSection


class FramesSection(Settings):
    """[plc]"""

    kind: Literal["frames"]
    port: str
    baud: int = Field(default=115200, ge=57_600, le=4_000_000)  # below that a command and its answer take longer than a retry
    timing: Literal["line", "plc"] = "line"  # who times the ejector


class LinesSection(Settings):
    """[plc] kind = "lines": the modem lines of a serial port, no messages"""

    kind: Literal["lines"]
    port: str
    trigger: Literal["rising", "falling"] = "rising"  # the edge of CTS at which a part stands before the camera
    dsr: Literal["confirm", "enable", "none"] = "confirm"  # a sensor behind the ejector; the PLC takes part; not connected
    dsr_active: Literal["high", "low"] = "high"
    reject: Literal["high", "low"] = "low"  # RTS while the ejector fires; low: also while nobody holds the port
    ready: Literal["blink", "level"] = "blink"  # DTR while parts are taken: changes every 50 ms, or is high
    gap_ms: float = Field(default=5, ge=0, le=1000)  # least time between two pulses
    debounce_ms: float = Field(default=2, ge=0, le=1000)  # a trigger's line has to stay so long


class ModbusSection(Settings):
    """[plc] kind = "modbus": the line is the master, the PLC a Modbus RTU slave"""

    kind: Literal["modbus"]
    port: str
    baud: int = Field(default=115200, ge=38_400, le=4_000_000)  # below that a round of requests takes longer than a heartbeat
    parity: Literal["none", "even", "odd"] = "none"
    unit: int = Field(default=1, ge=1, le=247)  # the PLC's
    read_at: int = Field(default=0, ge=0, le=0xFFFF - FROM_PLC_LENGTH)  # the first holding register of what the PLC says
    write_at: int = Field(default=100, ge=0, le=0xFFFF - TO_PLC.length)  # and of what the line says
    poll_ms: float = Field(default=5, ge=1, le=50)  # from the begin of a round to that of the next one
    timeout_ms: float = Field(default=50, ge=10, le=150)  # of a request
    timing: Literal["line", "plc"] = "line"  # who times the ejector

    @model_validator(mode="after")
    def _blocks(self) -> ModbusSection:
        if self.read_at < self.write_at + TO_PLC.length and self.write_at < self.read_at + FROM_PLC_LENGTH:
            raise ValueError(f"read_at ({self.read_at}) and write_at ({self.write_at}) apart: what the PLC says takes {FROM_PLC_LENGTH} "
                             f"registers, what the line says {TO_PLC.length}")
        return self


class BeltSection(Settings):
    """[belt]"""

    travel_ms: float = Field(gt=0, le=60_000)  # camera to ejector; a REJECT can wait 65 s in the PLC, not longer
    lead_ms: float = Field(default=100, ge=20, le=10_000)  # how long before the ejector a REJECT is sent
    pulse_ms: int = Field(default=20, ge=1, le=10_000)
    confirm_ms: float = Field(default=300, ge=0, le=60_000)  # after the ejector, within which a confirmation counts
    uninspected: Literal["eject", "pass"] = "eject"
    travel_counts: int | None = Field(default=None, ge=1, lt=1 << 30)  # camera to ejector by the encoder, for a belt whose speed varies
    fastest_counts_per_s: float = Field(default=1e6, gt=0, allow_inf_nan=False)  # an encoder that shows more is wrong
    late_in_a_row: int = Field(default=3, ge=1)  # late verdicts that make a fault
    rejects_in_a_row: int = Field(default=0, ge=0)  # rejected parts that make one; 0: never
    stop_on: list[Literal["late", "rejects", "unconfirmed", "challenge"]] = Field(default_factory=list)  # until a person clears them

    @model_validator(mode="after")
    def _lead(self) -> BeltSection:
        if self.lead_ms >= self.travel_ms:
            raise ValueError(f"lead_ms ({self.lead_ms:g}) below travel_ms ({self.travel_ms:g}), or no time is left to inspect")
        return self

    @property
    def timing(self) -> BeltTiming:
        """The same in seconds."""
        return BeltTiming(self.travel_ms / 1000, self.lead_ms / 1000, self.confirm_ms / 1000, self.uninspected == "eject",
                          self.travel_counts, self.fastest_counts_per_s, self.late_in_a_row, self.rejects_in_a_row, tuple(self.stop_on))


class JournalSection(Settings):
    """[journal]"""

    path: str = "journal.db"
    pictures: Literal["rejects", "none"] = "rejects"
    quota_mb: float = Field(default=1000, gt=0, allow_inf_nan=False)  # of pictures; the oldest go first


class LineFile(Settings):
    """A whole line file, and the folder that its paths are relative to."""

    line: LineSection
    camera: list[Annotated[CameraKind, Field(discriminator="kind")]] = Field(min_length=1, max_length=8)
    plc: FramesSection | LinesSection | ModbusSection = Field(discriminator="kind")
    belt: BeltSection
    journal: JournalSection = JournalSection()

    @field_validator("camera", mode="before")
    @classmethod
    def _one_camera(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _encoder(self) -> LineFile:
        if self.plc.kind == "lines" and self.belt.travel_counts is not None:
            raise ValueError("no travel_counts under [belt]: the link `lines` has no encoder")
        if self.plc.kind == "lines" and any(camera.match == "encoder" for camera in self.camera):
            raise ValueError('match = "trigger" or "frame-id" under [camera]: the link `lines` has no encoder')
        return self

    def resolve(self, source: Path, path: str) -> Path:
        """A path of the line file ``source``."""
        return source.parent / path


def read_line_file(path: Path) -> LineFile:
    """Read a line file. Raises InputError naming each wrong key, what it got, and what it expects."""
    advice = f"Mend {path}; README.md shows a whole line file."
    return validate(LineFile, read_toml(path, InputError, advice), path, InputError, advice)

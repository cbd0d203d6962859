"""The line file: everything about one line in TOML. Unknown keys are forbidden; paths are relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edge.base.errors import InputError
from edge.base.kinds import OneOf
from edge.base.settings import Settings, read_toml, validate
from edge.cameras.kinds import CAMERAS
from edge.cameras.section import CameraSection
from edge.line_control.parts import BeltTiming
from edge.plc.kinds import LINKS
from edge.plc.section import PlcSection


class LineSection(Settings):
    """[line]"""

    name: str
    bundle: str
    mode: Literal["latency", "throughput"] = "latency"  # each verdict as soon as possible, or as many as possible
    threads: int = Field(default=0, ge=0, le=256)  # of the engine; 0: as many as there are cores


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
    camera: list[Annotated[CameraSection, OneOf(CAMERAS)]] = Field(min_length=1, max_length=8)
    plc: Annotated[PlcSection, OneOf(LINKS)]
    belt: BeltSection
    journal: JournalSection = JournalSection()

    @field_validator("camera", mode="before")
    @classmethod
    def _one_camera(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _encoder(self) -> LineFile:
        if not self.plc.has_encoder and self.belt.travel_counts is not None:
            raise ValueError(f"no travel_counts under [belt]: the link `{self.plc.kind}` has no encoder")
        if not self.plc.has_encoder and any(camera.match == "encoder" for camera in self.camera):
            raise ValueError(f'match = "trigger" or "frame-id" under [camera]: the link `{self.plc.kind}` has no encoder')
        return self

    def resolve(self, source: Path, path: str) -> Path:
        """A path of the line file ``source``."""
        return source.parent / path


def read_line_file(path: Path) -> LineFile:
    """Read a line file. Raises InputError naming each wrong key, what it got, and what it expects."""
    advice = f"Mend {path}; README.md shows a whole line file."
    return validate(LineFile, read_toml(path, InputError, advice), path, InputError, advice)

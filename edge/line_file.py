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

VERSION: Literal[1] = 1  # of the line file; raise it when a key changes its meaning


class LineSection(Settings):
    """[line]"""

    version: Literal[1] = VERSION
    name: str
    bundle: str  # a folder
    mode: Literal["latency", "throughput"] = "latency"  # each verdict as soon as possible, or as many as possible
    threads: int = Field(default=0, ge=0, le=256)  # of the engine; 0: as many as there are cores


class BeltSection(Settings):
    """[belt]"""

    travel_ms: float = Field(gt=0, le=60_000)  # from camera to ejector; the PLC keeps a REJECT for 65 s at most
    lead_ms: float = Field(default=100, ge=20, le=10_000)  # a REJECT is sent so long before the part is at the ejector
    pulse_ms: int = Field(default=20, ge=1, le=10_000)  # how long the ejector fires
    confirm_ms: float = Field(default=300, ge=0, le=60_000)  # how long after the ejector a confirmation counts
    uninspected: Literal["eject", "pass"] = "eject"
    # from camera to ejector in encoder counts, for a belt whose speed varies
    travel_counts: int | None = Field(default=None, ge=1, lt=1 << 30)
    # a faster reading of the encoder is wrong
    fastest_counts_per_s: float = Field(default=1e6, gt=0, allow_inf_nan=False)
    late_in_a_row: int = Field(default=3, ge=1)  # so many late verdicts are a fault
    rejects_in_a_row: int = Field(default=0, ge=0)  # so many rejected parts are a fault; 0: never
    # faults that stop the line until a person clears them
    stop_on: list[Literal["late", "rejects", "unconfirmed", "challenge"]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _lead(self) -> BeltSection:
        if self.lead_ms >= self.travel_ms:
            raise ValueError(f"lead_ms ({self.lead_ms:g}) below travel_ms ({self.travel_ms:g}): the part is inspected "
                             "in between")
        return self

    @property
    def timing(self) -> BeltTiming:
        """The section in seconds, as line control takes it."""
        return BeltTiming(self.travel_ms / 1000, self.lead_ms / 1000, self.confirm_ms / 1000,
                          self.uninspected == "eject", self.travel_counts, self.fastest_counts_per_s,
                          self.late_in_a_row, self.rejects_in_a_row, tuple(self.stop_on))


class JournalSection(Settings):
    """[journal]"""

    path: str = "journal.db"
    pictures: Literal["rejects", "none"] = "rejects"
    quota_mb: float = Field(default=1000, gt=0, allow_inf_nan=False)  # for pictures; the oldest are deleted first


class LineFile(Settings):
    """A whole line file."""

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
            raise ValueError('match = "trigger" or "frame-id" under [camera]: '
                             f"the link `{self.plc.kind}` has no encoder")
        return self

    def resolve(self, source: Path, path: str) -> Path:
        """A path in the line file ``source``, which may be relative to it."""
        return source.parent / path


def read_line_file(path: Path) -> LineFile:
    """Read a line file. Raises InputError, which names each wrong key, what it got, and what is expected."""
    advice = f"Fix {path}; README.md shows a whole line file."
    content = read_toml(path, InputError, advice)
    line = content.get("line")
    version = line.get("version") if isinstance(line, dict) else None
    if isinstance(version, int) and version > VERSION:  # first, since a newer file may have keys that are unknown here
        raise InputError(f"{path} is written for a newer Lineside", got=f"version {version} under [line]",
                         expected=f"version {VERSION}",
                         next="Install the newer Lineside on this machine: docs/compatibility.md says how.")
    return validate(LineFile, content, path, InputError, advice)

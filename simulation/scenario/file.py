"""Scenario files in TOML: a line, its faults, and what is expected of it. Unknown keys are forbidden."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from edge.base.errors import InputError
from edge.base.settings import Settings, read_toml, validate
from edge.cameras.section import Match

Process = Literal["supervisor", "control", "runtime", "plc"]
CauseName = Literal["late", "no-frame", "camera", "image", "engine", "link", "unmatched", "stopped", "restart",
                    "challenge", "incomplete"]


class Fault(Settings):
    """[[fault]]: one thing that goes wrong, when a part is triggered, or some seconds after the first trigger."""

    at_part: int | None = Field(default=None, ge=1)  # the PLC's id, from 1
    at_s: float | None = Field(default=None, ge=0, le=3600)

    @model_validator(mode="after")
    def _moment(self) -> Fault:
        if (self.at_part is None) == (self.at_s is None):
            raise ValueError("either at_part or at_s")
        return self


class OfParts(Fault):
    """A fault that hits `count` parts from `at_part` on."""

    at_part: int = Field(ge=1)
    at_s: None = None
    count: int = Field(default=1, ge=1)


class Lasting(Fault):
    """A fault that lasts `for_s` seconds."""

    for_s: float = Field(gt=0, le=600)


class FrameFault(OfParts):
    """The frame never comes, comes twice, comes after the next part's, or is cut to its upper half."""

    kind: Literal["frame-dropped", "frame-duplicated", "frames-swapped", "frame-truncated"]


class FrameLate(OfParts):
    """The frame comes `by_ms` later; the frames after it overtake it."""

    kind: Literal["frame-late"]
    by_ms: float = Field(gt=0, le=60_000)


class FrameShifted(OfParts):
    """The frame has a wrong encoder count and frame id. For cameras that do not know the trigger."""

    kind: Literal["frame-shifted"]
    counts: int = 0
    ids: int = 0


class CameraFault(Lasting):
    """The camera delivers nothing, or fails whenever it is asked for a frame; the frames come afterwards."""

    kind: Literal["camera-stall", "camera-error"]


class EngineFault(OfParts):
    """The inference fails, or the GPU is lost, which ends the runtime."""

    kind: Literal["engine-error", "engine-lost"]


class SlowInference(OfParts):
    """The inference takes `by_ms` longer."""

    kind: Literal["slow-inference"]
    by_ms: float = Field(gt=0, le=60_000)


class Kill(Fault):
    """kill -9.

    After the supervisor is killed, the line is restarted when its children are gone and `pause_s` has passed.
    """

    kind: Literal["kill"]
    process: Literal["supervisor", "control", "runtime"]
    pause_s: float = Field(default=0.5, ge=0, le=60)


class Freeze(Lasting):
    """SIGSTOP, and SIGCONT after `for_s`."""

    kind: Literal["freeze"]
    process: Process


class Restart(Fault):
    """The line is stopped in order, with parts on the belt, and restarted after `pause_s`."""

    kind: Literal["restart"]
    pause_s: float = Field(default=0.5, ge=0, le=60)


class LinkFault(Lasting):
    """The PLC's port is gone; or the PLC receives nothing; or it sends nothing."""

    kind: Literal["unplug", "deaf-plc", "mute-plc"]


class WireFault(Lasting):
    """Each message on the wire, with probability `share`: random bytes before it; half of it lost; or lost if it is an
    ACK.
    """

    kind: Literal["garbage", "half-frames", "lost-acks"]
    share: float = Field(default=0.5, gt=0, le=1)


class SensorFault(Lasting):
    """The encoder jumps by `by` counts and back with each part; or the sensor at the ejector sees nothing."""

    kind: Literal["encoder-glitch", "confirm-missing"]
    by: int = Field(default=-100_000, ge=-(1 << 31), lt=1 << 31)


class ClockStep(Fault):
    """The wall clock of the line's processes jumps by `by_s`."""

    kind: Literal["clock-step"]
    by_s: float = Field(allow_inf_nan=False)


class DiskFull(Lasting):
    """The runtime cannot write to any file (RLIMIT_FSIZE)."""

    kind: Literal["disk-full"]


class Hogs(Lasting):
    """`count` processes that keep the processor busy."""

    kind: Literal["cpu-hogs"]
    count: int = Field(default=2, ge=1, le=64)


FAULTS: dict[str, type[Fault]] = {
    name: model for model in (FrameFault, FrameLate, FrameShifted, CameraFault, EngineFault, SlowInference, Kill,
                              Freeze, Restart, LinkFault, WireFault, SensorFault, ClockStep, DiskFull, Hogs)
    for name in model.model_fields["kind"].annotation.__args__}  # type: ignore[union-attr]


class Expect(Settings):
    """[expect]: what a scenario allows beyond what its faults explain, and what must have happened."""

    causes: list[CauseName] = Field(default=[])  # of UNINSPECTED, allowed for any part
    # the least number of parts of each cause; otherwise the fault had no effect
    seen: dict[CauseName, int] = Field(default={})
    restarts: int = Field(default=0, ge=0)  # the least number of restarts by the supervisor
    may_pass: bool = False  # parts without a PASS may pass the ejector: for `uninspected = "pass"`


class Virtual(Settings):
    """[virtual]: how often each thing goes wrong, per 1,000 parts."""

    late_verdicts: float = Field(default=5, ge=0, le=1000)
    no_verdicts: float = Field(default=2, ge=0, le=1000)
    engine_errors: float = Field(default=2, ge=0, le=1000)
    repeated_ids: float = Field(default=1, ge=0, le=1000)
    missing_confirms: float = Field(default=2, ge=0, le=1000)
    false_confirms: float = Field(default=1, ge=0, le=1000)
    failed_orders: float = Field(default=1, ge=0, le=1000)
    lost_links: float = Field(default=0.5, ge=0, le=100)
    lost_runtimes: float = Field(default=0.2, ge=0, le=100)
    control_restarts: float = Field(default=0.2, ge=0, le=100)
    belt_stops: float = Field(default=0.2, ge=0, le=100)
    speed_changes: float = Field(default=1, ge=0, le=100)


class Scenario(Settings):
    """A scenario file without its faults."""

    about: str
    time: Literal["real", "virtual"] = "real"
    parts: Literal["rendered", "folder"] = "rendered"
    path: str | None = None  # the folder of images
    bundle: str | None = None  # instead of the packaged one
    count: int = Field(default=200, ge=1, le=100_000_000)
    rate: float = Field(default=15.0, gt=0, le=1000)  # parts a second
    jitter: float = Field(default=0.1, ge=0, lt=0.5)  # of the triggers, as a share of the pitch of parts
    travel_ms: float = Field(default=800, gt=0, le=60_000)
    lead_ms: float = Field(default=100, ge=20, le=10_000)
    uninspected: Literal["eject", "pass"] = "eject"
    match: Match = "trigger"  # this and the windows: as under [camera] in a line file
    window_counts: int = Field(default=0, ge=0)
    window_ms: float = Field(default=30, gt=0)
    defect_rate: float = Field(default=0.15, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    expect: Expect = Expect()
    virtual: Virtual = Virtual()

    @model_validator(mode="after")
    def _together(self) -> Scenario:
        if self.lead_ms >= self.travel_ms:
            raise ValueError(f"lead_ms ({self.lead_ms:g}) below travel_ms ({self.travel_ms:g})")
        if (self.parts == "folder") != (self.path is not None):
            raise ValueError('path together with parts = "folder", and only then')
        if self.time == "real" and self.count > 100_000:
            raise ValueError(f'at most 100000 parts in real time (count is {self.count}), or time = "virtual"')
        return self


@dataclass(frozen=True)
class ScenarioFile:
    """A scenario, its faults, and the file that they are from."""

    path: Path
    scenario: Scenario
    faults: tuple[Fault, ...]

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return self.path.stem

    def resolve(self, path: str) -> Path:
        """A path that the file names, relative to the file."""
        return self.path.parent / path


def kind_of(fault: Fault) -> str:
    """The fault's kind, as in the file."""
    return str(fault.kind)  # type: ignore[attr-defined]


def read_scenario(path: Path, overrides: dict[str, Any] | None = None) -> ScenarioFile:
    """Read a scenario file. overrides: keys that replace the file's.

    Raises InputError naming each wrong key, what it got, and what it expects.
    """
    advice = f"Fix {path}; docs/simulate.md lists all keys and faults."
    data = read_toml(path, InputError, advice) | (overrides or {})
    given = data.pop("fault", [])
    if not isinstance(given, list):
        raise InputError(f"{path}: 'fault' is a single table", expected="[[fault]], with two brackets", next=advice)
    faults = tuple(_fault(number, entry, path, advice) for number, entry in enumerate(given, 1))
    scenario = validate(Scenario, data, path, InputError, advice)
    if scenario.time == "virtual" and faults:
        raise InputError(f"{path}: [[fault]] in virtual time", expected="[virtual] with rates", next=advice)
    for number, fault in enumerate(faults, 1):
        beyond = fault.at_part if fault.at_part is not None else math.ceil((fault.at_s or 0) * scenario.rate)
        if beyond > scenario.count:
            raise InputError(f"{path}: fault {number} ({kind_of(fault)}) comes after the last part",
                             got=f"part {beyond}", expected=f"at most {scenario.count}", next=advice)
    return ScenarioFile(path, scenario, faults)


def _fault(number: int, entry: Any, path: Path, advice: str) -> Fault:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in FAULTS:
        raise InputError(f"{path}: fault {number} has no known kind", got=kind, expected="one of " + ", ".join(FAULTS),
                         next=advice)
    return validate(FAULTS[kind], entry, Path(f"{path}, fault {number}"), InputError, advice)

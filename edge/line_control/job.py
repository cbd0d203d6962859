"""The job of a line control process: the line that it controls, and the descriptors that it inherits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.line_control.parts import BeltTiming


@dataclass(frozen=True)
class ControlJob:
    """What a line control process is started with, as one JSON argument.

    Descriptors are numbers of open file descriptors.
    """

    plc: dict[str, Any]  # the [plc] section of the line file, with its port resolved
    link: str  # "module:Class" of the PLC link, see `edge.plc.section.PlcSection.link`
    timing: BeltTiming
    pulse_ms: int  # how long the ejector fires
    parts: int  # end after so many parts; 0: run until stopped
    run_id: str  # names this run of the line, also after a restart of the process
    restarted: bool  # the process before it died: keep trying to open the port
    belt_file: Path  # where the parts on the belt are kept
    listener: int  # descriptor of the socket at which the runtime connects
    supervisor: int  # descriptor of a pipe that ends when the supervisor dies
    tape: int | None = None  # descriptor of a pipe that takes the recording; None: nothing is recorded

    @property
    def options(self) -> dict[str, Any]:
        """What the PLC link takes as arguments."""
        return {key: value for key, value in self.plc.items() if key != "kind"}

    def to_json(self) -> str:
        """The job as the process takes it."""
        return json.dumps({**asdict(self), "belt_file": str(self.belt_file)})

    @staticmethod
    def from_json(text: str) -> ControlJob:
        """The job that ``to_json`` wrote."""
        found = json.loads(text)
        return ControlJob(**{**found, "timing": _timing(found["timing"]), "belt_file": Path(found["belt_file"])})

    def tape_entry(self) -> dict[str, Any]:
        """The tape's entry "begin": what a replay needs. Its names are part of the format of recorded sessions.

        Without ``link``: a session recorded elsewhere must not name code to import. A replay finds the link by its
        kind.
        """
        return {"plc": self.plc, "timing": asdict(self.timing), "parts": self.parts, "pulse_ms": self.pulse_ms,
                "session": self.run_id, "again": self.restarted}

    @staticmethod
    def from_tape(entry: dict[str, Any], link: str, belt_file: Path) -> ControlJob:
        """The job of a recorded process, for a replay with a belt file of its own. It has no descriptors (-1)."""
        return ControlJob(entry["plc"], link, _timing(entry["timing"]), entry["pulse_ms"], entry["parts"],
                          entry["session"], entry["again"], belt_file, listener=-1, supervisor=-1)


def _timing(found: dict[str, Any]) -> BeltTiming:
    return BeltTiming(**{**found, "stop_on": tuple(found.get("stop_on", ()))})  # JSON has no tuples

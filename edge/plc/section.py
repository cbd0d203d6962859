"""What every kind of PLC link declares: its section of the line file, its class, and how long its wire takes.

A kind is a class derived from `PlcSection` and one line in `edge.plc.kinds.LINKS`. Line control, which locks its memory
and must restart quickly, imports only the link's class. So keep the link in a module of its own, which imports neither
pydantic nor this module. Where memory and restart time do not matter, section and link may share a file.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from edge.base.finding import Finding
from edge.base.settings import Settings


class WireTimes(NamedTuple):
    """Times on the wire in ms, calculated, not measured."""

    trigger_and_verdict: float  # for a trigger to come in and its verdict to go out
    repeated_reject: float  # for a REJECT that is lost once, its repetition, and the acknowledgement


class PlcSection(Settings):
    """[plc]: what all kinds have. A kind adds ``kind: Literal["its-name"]``, its own keys, and `wire_times`."""

    # "module:Class" of the `PlcLink`. Its arguments are the keys below except ``kind``, and ``tape``
    link: ClassVar[str]
    has_encoder: ClassVar[bool] = True  # whether the PLC can send the belt's encoder count
    kind: str
    port: str

    @abstractmethod
    def wire_times(self) -> WireTimes:
        """How long this link's wire takes."""

    def options(self, folder: Path) -> dict[str, Any]:
        """The arguments of the link's class, as JSON values. ``folder``: where a relative port starts."""
        return {**self.model_dump(exclude={"kind"}), "port": str(folder / self.port)}

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterable[Finding]:
        """What this kind needs, and whether this machine has it. ``root``: of the machine's file system."""
        return ()

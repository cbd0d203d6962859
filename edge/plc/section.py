"""What every kind of PLC link declares: its section of the line file, its class, and how long its wire takes.

A kind is a class derived from `PlcSection`, and one line in `edge.plc.kinds.LINKS`. Line control locks its memory and has to be back soon
after it was killed, so it imports the link's class alone: a link's module imports neither pydantic nor this one. Where that does not matter,
section and link may share a file.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from edge.base.finding import Finding
from edge.base.settings import Settings

BITS = 10  # of a byte on a serial port without parity


class WireTimes(NamedTuple):
    """Times on the wire in ms, worked out and not measured."""

    trigger_and_verdict: float  # for a trigger to come in and its verdict to go out
    repeated_reject: float  # for a REJECT that is lost once, its repetition, and the acknowledgement


class PlcSection(Settings):
    """[plc]: what all kinds have. A kind adds ``kind: Literal["its-name"]``, its own keys, and `wire_times`."""

    link: ClassVar[str]  # "module:Class" of the `PlcLink`; it takes the keys below but ``kind`` as arguments, and ``tape``
    has_encoder: ClassVar[bool] = True  # whether the PLC can tell the belt's encoder count
    kind: str
    port: str

    @abstractmethod
    def wire_times(self) -> WireTimes:
        """How long this link's wire takes."""

    def options(self, folder: Path) -> dict[str, Any]:
        """What the link's class takes, as JSON knows it. ``folder``: what a relative port starts from."""
        return {**self.model_dump(exclude={"kind"}), "port": str(folder / self.port)}

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterable[Finding]:
        """What this machine has and lacks for this kind. ``root``: of its file system."""
        return ()

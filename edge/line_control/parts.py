"""What line control keeps: a line's timing, the parts on its belt, and the counts. Times in seconds of one monotonic clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from edge.part.faults import FaultCode
from edge.part.verdict import Cause, Verdict

UNLIMITED = 1 << 30
STOPPING = {  # the names that `stop_on` in the line file uses
    "late": FaultCode.LATE, "rejects": FaultCode.REJECTS, "unconfirmed": FaultCode.UNCONFIRMED, "challenge": FaultCode.CHALLENGE}


@dataclass(frozen=True)
class BeltTiming:
    """Times in seconds: camera to ejector, how long before it a REJECT is sent, and how long after it a confirmation may come."""

    travel: float
    lead: float
    confirm: float = 0.3
    eject_uninspected: bool = True
    counts: int | None = None  # camera to ejector by the encoder; then ``travel`` holds at the highest speed alone
    fastest: float = 1e6  # counts a second that the belt cannot go beyond
    late_in_a_row: int = 3  # late verdicts that make a fault
    rejects_in_a_row: int = 0  # parts ejected one after the other that make a fault; 0: never
    stop_on: tuple[str, ...] = ()  # faults that stop the line until a person clears them: keys of STOPPING


@dataclass
class Ledger:
    """The counts of a line; ``triggers == passed + rejected + uninspected + open parts`` at every moment."""

    triggers: int = 0
    passed: int = 0
    rejected: int = 0
    uninspected: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    refused_triggers: int = 0
    late_verdicts: int = 0
    confirmed: int = 0
    unconfirmed: int = 0
    unexpected_confirms: int = 0
    failed_orders: int = 0
    link_losses: int = 0
    encoder_glitches: int = 0

    def as_json(self) -> dict[str, Any]:
        """The counts as a dictionary of its own."""
        return {**vars(self), "causes": dict(self.causes)}


COUNTS = [field.name for field in fields(Ledger) if field.name != "causes"]
counts_of = attrgetter(*COUNTS)  # those of ``causes`` change with ``uninspected`` alone


@dataclass(eq=False, slots=True)
class BeltPart:
    """A part on the belt. Times in seconds of the line's clock."""

    id: int
    trigger: int
    encoder: int | None
    triggered: float
    due: float
    verdict: Verdict | None = None
    cause: Cause | None = None
    score: float | None = None
    ended: bool = False
    ended_at: float = 0.0
    to_eject: bool = False
    ordered: bool = False
    held: bool = False
    confirmed: bool = False
    arrived: bool = False  # by the encoder: it stood before the ejector at ``due``
    gone: bool = False  # it has left the belt
    target: int | None = None  # the encoder's count at which it stands before the ejector
    challenge: bool = False  # known to be bad
    restored: bool = False  # known from a line control that died

"""What line control keeps: the line's timing, the parts on its belt, and the ledger.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from edge.part.faults import FaultCode
from edge.part.verdict import Cause, Verdict

UNLIMITED = 1 << 30
STOPPING = {  # the names that `stop_on` in the line file uses
    "late": FaultCode.LATE, "rejects": FaultCode.REJECTS, "unconfirmed": FaultCode.UNCONFIRMED,
    "challenge": FaultCode.CHALLENGE}


@dataclass(frozen=True)
class BeltTiming:
    """The belt's times in seconds, and when line control reports a fault: [belt] of the line file."""

    travel: float  # from camera to ejector
    lead: float  # a REJECT is sent so long before the part reaches the ejector
    confirm: float = 0.3  # a confirmation may come so long after that
    eject_uninspected: bool = True
    counts: int | None = None  # encoder counts from camera to ejector; ``travel`` is then the time at the highest speed
    fastest: float = 1e6  # counts/s that the belt cannot exceed
    late_in_a_row: int = 3  # so many late verdicts in a row are a fault
    rejects_in_a_row: int = 0  # so many rejected parts in a row are a fault; 0: never
    stop_on: tuple[str, ...] = ()  # faults that stop the line until a person clears them: keys of STOPPING


@dataclass
class Ledger:
    """The counts of one run of the line.

    At every moment ``triggers == passed + rejected + uninspected + open parts``.
    """

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
        """A copy as a dictionary."""
        return {**vars(self), "causes": dict(self.causes)}


COUNTS = [field.name for field in fields(Ledger) if field.name != "causes"]
counts_of = attrgetter(*COUNTS)  # enough to see a change: ``causes`` changes only together with ``uninspected``


@dataclass(eq=False, slots=True)
class BeltPart:
    """A part on the belt. Times are seconds of the line's clock."""

    id: int  # given by the PLC; may come again
    trigger: int  # the line's own count, from 1
    encoder: int | None  # the belt's count at the trigger
    triggered: float  # when it was before the camera
    due: float  # when it reaches the ejector
    verdict: Verdict | None = None
    cause: Cause | None = None
    score: float | None = None
    ended: bool = False
    ended_at: float = 0.0
    to_eject: bool = False
    ordered: bool = False  # the PLC was sent the REJECT
    held: bool = False  # where it is is not known: the PLC ejects it by the fail-safe rule, and no REJECT is sent
    confirmed: bool = False  # it was seen to leave at the ejector
    arrived: bool = False  # the encoder showed that it reached the ejector, at ``due``
    gone: bool = False  # it has left the belt
    target: int | None = None  # the encoder count at which it reaches the ejector
    challenge: bool = False  # a challenge part: known to be bad
    restored: bool = False  # read from the belt file of a line control that died

    @property
    def awaits_ejection(self) -> bool:
        """Whether a REJECT has still to be sent for it."""
        return self.to_eject and not self.ordered and not self.held

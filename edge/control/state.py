"""The heart of line control: ``(event, now) -> actions``, with no I/O and no clock of its own.

Every trigger opens a part. Every part ends in exactly one of PASS, REJECT and UNINSPECTED(cause) before it reaches the ejector, and
whatever is not PASS is ejected (UNINSPECTED unless the line file lets it pass). Times are seconds of one monotonic clock.

A part's way, with ``due`` the moment at which it stands at the ejector:

    trigger ... verdict ... due - lead: no verdict -> UNINSPECTED(late); REJECT is sent to the PLC
                        ... due - lead / 2: a PASS that the PLC has not acknowledged -> UNINSPECTED(link), REJECT is sent
                        ... due
                        ... due: a part that passed is forgotten
                        ... due + CONFIRM_WINDOW: an ejection that was not seen counts as unconfirmed; the part is forgotten
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from edge.rule import Cause, Verdict

CONFIRM_WINDOW = 0.3  # s
LATE_IN_A_ROW = 3  # late verdicts that make a fault


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trigger:
    """The PLC says that a part stands in front of the camera, or stood there ``age`` seconds ago."""

    part: int
    encoder: int | None = None
    age: float = 0.0


@dataclass(frozen=True)
class TriggerRefused:
    """A trigger came while the line did not accept parts; the PLC was told so."""

    part: int


@dataclass(frozen=True)
class PartVerdict:
    """What the runtime found. ``info`` is passed on to the outcome untouched."""

    part: int
    verdict: Verdict
    cause: Cause | None = None
    score: float | None = None
    info: object = None


@dataclass(frozen=True)
class VerdictDelivered:
    """The PLC acknowledged the verdict on a part."""

    part: int


@dataclass(frozen=True)
class OrderFailed:
    """The PLC refused to eject a part, or never acknowledged the command."""

    part: int
    reason: str


@dataclass(frozen=True)
class Confirm:
    """The PLC saw a part leave at the ejector."""

    part: int


@dataclass(frozen=True)
class LinkLost:
    """The port is gone, or the PLC's heartbeat."""

    reason: str


@dataclass(frozen=True)
class LinkBack:
    """The PLC is heard (again)."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Stop:
    """The line is stopped: all open parts end now."""


Event = Trigger | TriggerRefused | PartVerdict | VerdictDelivered | OrderFailed | Confirm | LinkLost | LinkBack | Tick | Stop


# --- actions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expose:
    """Take a frame of this part."""

    part: int
    encoder: int | None


@dataclass(frozen=True)
class Report:
    """Tell the PLC the verdict. ``eject``: whether an uninspected part is ejected."""

    part: int
    verdict: Verdict
    cause: Cause | None
    score: float | None
    eject: bool


@dataclass(frozen=True)
class Order:
    """Have the PLC eject a part at ``due``."""

    part: int
    due: float


@dataclass(frozen=True)
class Ended:
    """The one outcome of a part."""

    part: int
    verdict: Verdict
    cause: Cause | None
    score: float | None
    encoder: int | None
    triggered: float
    ended: float
    info: object = None


@dataclass(frozen=True)
class Alarm:
    """Something a person has to look at. ``code`` is a fault code of the PLC link, 0 for none."""

    code: int
    text: str


Action = Expose | Report | Order | Ended | Alarm


# --- state ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BeltTiming:
    """Times in seconds: camera to ejector, and how long before the ejector a REJECT is sent."""

    travel: float
    lead: float
    eject_uninspected: bool = True


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


@dataclass
class _Part:
    id: int
    encoder: int | None
    triggered: float
    due: float
    verdict: Verdict | None = None
    cause: Cause | None = None
    score: float | None = None
    info: object = None
    ended: bool = False
    to_eject: bool = False
    ordered: bool = False
    confirmed: bool = False


class LineState:
    """The parts on the belt and their ledger."""

    def __init__(self, timing: BeltTiming, parts: int = 0) -> None:
        """parts: after how many triggers no more are accepted; 0 for no limit."""
        self.timing = timing
        self.ledger = Ledger()
        self.stopped = False
        self.link_up = False
        self._limit = parts
        self._belt: list[_Part] = []  # in order of arrival, and so of due times
        self._late_in_a_row = 0

    @property
    def accepting(self) -> bool:
        """Whether a trigger opens a part."""
        return not self.stopped and (not self._limit or self.ledger.triggers < self._limit)

    @property
    def open_parts(self) -> int:
        """How many parts have no outcome yet."""
        return sum(not part.ended for part in self._belt)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: no trigger is accepted and no part is on the belt."""
        return not self.accepting and not self._belt

    def next_due(self) -> float | None:
        """When `handle` has to be called with a Tick at the latest; None while the belt is empty."""
        return min((moment for part in self._belt for moment in self._moments(part)), default=None)

    def _moments(self, part: _Part) -> list[float]:
        moments = [self._leaves(part)]
        if part.verdict is None or (part.to_eject and not part.ordered):
            moments.append(part.due - self.timing.lead)
        elif not part.ended:
            moments.append(part.due - self.timing.lead / 2)
        return moments

    @staticmethod
    def _leaves(part: _Part) -> float:
        return part.due + CONFIRM_WINDOW if part.ordered and not part.confirmed else part.due

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event and what time has brought; events come in order of time."""
        actions: list[Action] = []
        if isinstance(event, Trigger):
            self._trigger(event, now, actions)
        elif isinstance(event, TriggerRefused):
            self.ledger.refused_triggers += 1
            actions.append(Alarm(0, f"part {event.part} came while the line was not ready"))
        elif isinstance(event, PartVerdict):
            self._verdict(event, now, actions)
        elif isinstance(event, VerdictDelivered):
            for part in self._belt:
                if part.id == event.part and part.verdict is Verdict.PASS and not part.ended:
                    self._end(part, now, actions)
        elif isinstance(event, Confirm):
            self._confirm(event, actions)
        elif isinstance(event, OrderFailed):
            self.ledger.failed_orders += 1
            actions.append(Alarm(0, f"the PLC did not take the command to eject part {event.part}: {event.reason}"))
        elif isinstance(event, LinkLost):
            self.link_up = False
            if self.accepting or self.open_parts or any(part.to_eject and not part.ordered for part in self._belt):
                self.ledger.link_losses += 1  # after the last part the PLC may go
                actions.append(Alarm(0, f"the PLC is not heard: {event.reason}"))
        elif isinstance(event, LinkBack):
            self.link_up = True
        elif isinstance(event, Stop):
            self._stop(now, actions)
        self._advance(now, actions)
        return actions

    def _trigger(self, event: Trigger, now: float, actions: list[Action]) -> None:
        self.ledger.triggers += 1
        stood = now - event.age
        part = _Part(event.part, event.encoder, stood, stood + self.timing.travel)
        twins = [other for other in self._belt if other.id == event.part]
        self._belt.append(part)
        self._belt.sort(key=lambda other: other.due)  # a repeated trigger comes after a younger one
        if not twins:
            actions.append(Expose(part.id, part.encoder))
            return
        actions.append(Alarm(0, f"part {part.id} was triggered twice while on the belt: neither is known"))
        for twin in [*twins, part]:
            if not twin.ended:
                self._uninspected(twin, Cause.UNMATCHED, now, actions)

    def _verdict(self, event: PartVerdict, now: float, actions: list[Action]) -> None:
        part = next((p for p in self._belt if p.id == event.part and p.verdict is None), None)
        if part is None:
            self.ledger.late_verdicts += 1
            return
        if now >= part.due - self.timing.lead:
            self.ledger.late_verdicts += 1
            return  # _advance ends it
        self._late_in_a_row = 0
        part.info = event.info
        if event.verdict is Verdict.UNINSPECTED:
            self._uninspected(part, event.cause or Cause.CAMERA, now, actions)
            return
        part.verdict, part.score = event.verdict, event.score
        actions.append(Report(part.id, part.verdict, None, part.score, part.verdict is Verdict.REJECT))
        if part.verdict is Verdict.REJECT:
            part.to_eject = True
            self._end(part, now, actions)

    def _uninspected(self, part: _Part, cause: Cause, now: float, actions: list[Action]) -> None:
        part.verdict, part.cause, part.score = Verdict.UNINSPECTED, cause, None
        part.to_eject = self.timing.eject_uninspected
        actions.append(Report(part.id, part.verdict, cause, None, part.to_eject))
        self._end(part, now, actions)

    def _confirm(self, event: Confirm, actions: list[Action]) -> None:
        part = next((p for p in self._belt if p.id == event.part and p.ordered and not p.confirmed), None)
        if part is None:
            self.ledger.unexpected_confirms += 1
            actions.append(Alarm(0, f"part {event.part} left at the ejector without a command"))
            return
        part.confirmed = True
        self.ledger.confirmed += 1

    def _stop(self, now: float, actions: list[Action]) -> None:
        self.stopped = True
        for part in self._belt:
            if part.verdict is None:
                self._uninspected(part, Cause.STOPPED, now, actions)
            if part.to_eject and not part.ordered:  # the delay in the command does the waiting
                self._order(part, actions)

    def close(self, now: float) -> list[Action]:
        """End what is still open because its verdict was never acknowledged; nothing may come after this."""
        actions: list[Action] = []
        for part in self._belt:
            if not part.ended:
                self._uninspected(part, Cause.LINK, now, actions)
        return actions

    def _advance(self, now: float, actions: list[Action]) -> None:
        lead = self.timing.lead
        for part in self._belt:
            if now < part.due - lead:
                break  # the others are due later
            if part.verdict is None:
                self._uninspected(part, Cause.LATE, now, actions)
                self._late_in_a_row += 1
                if self._late_in_a_row == LATE_IN_A_ROW:
                    actions.append(Alarm(3, f"{LATE_IN_A_ROW} verdicts in a row were late; run `lineside run` with a slower belt"))
            elif not part.ended and now >= part.due - lead / 2:
                self._uninspected(part, Cause.LINK, now, actions)
            if part.to_eject and not part.ordered:
                self._order(part, actions)
        gone = [part for part in self._belt if now >= self._leaves(part)]
        self.ledger.unconfirmed += sum(part.ordered and not part.confirmed for part in gone)
        if gone:
            self._belt = [part for part in self._belt if now < self._leaves(part)]

    def _order(self, part: _Part, actions: list[Action]) -> None:
        part.ordered = True
        actions.append(Order(part.id, part.due))

    def _end(self, part: _Part, now: float, actions: list[Action]) -> None:
        assert part.verdict is not None and not part.ended
        part.ended = True
        if part.verdict is Verdict.PASS:
            self.ledger.passed += 1
        elif part.verdict is Verdict.REJECT:
            self.ledger.rejected += 1
        else:
            self.ledger.uninspected += 1
            self.ledger.causes[(part.cause or Cause.CAMERA).value] += 1
        actions.append(Ended(part.id, part.verdict, part.cause, part.score, part.encoder, part.triggered, now, part.info))

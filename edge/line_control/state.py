"""The heart of line control: ``(event, now) -> actions``, with no I/O and no clock of its own.

Every trigger opens a part. Every part ends in exactly one of PASS, REJECT and UNINSPECTED(cause) before it reaches the ejector, and
whatever is not PASS is ejected (UNINSPECTED unless the line file lets it pass). Times are seconds of one monotonic clock.

A part's way, with ``due`` the moment at which it stands at the ejector:

    trigger ... verdict ... due - lead: no verdict -> UNINSPECTED(late); REJECT is sent to the PLC
                        ... due - lead / 2: a PASS that the PLC has not acknowledged -> UNINSPECTED(link), REJECT is sent
                        ... due
                        ... due: a part that passed is forgotten
                        ... due + confirm: an ejection that was not seen counts as unconfirmed; the part is forgotten
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from edge.line_control.belt import Belt
from edge.line_control.parts import STOPPING, UNLIMITED, BeltPart, BeltTiming, Ledger
from edge.part.encoder import BeltPosition, wrapped
from edge.part.events import (
    Action,
    Alarm,
    BeltStopped,
    Challenge,
    Challenged,
    Clear,
    Confirm,
    Encoder,
    Ended,
    Event,
    Expose,
    FaultOver,
    LinkLost,
    Order,
    OrderFailed,
    PartVerdict,
    Report,
    RuntimeLost,
    RuntimeReady,
    Stop,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.part.faults import FaultCode
from edge.part.verdict import Cause, Verdict

SAME = 0.03  # s: a trigger that a restart hears again is told from a new one of the same id by its time


class LineState:
    """The parts on the belt and their ledger."""

    def __init__(self, timing: BeltTiming, parts: int = 0, *, session: str = "", running: bool = True) -> None:
        """parts: after how many triggers no more are accepted; 0 for no limit. running: whether what inspects is ready from the start."""
        self.timing = timing
        self.ledger = Ledger()
        self.stopped = False
        self.running = running
        self.session = session
        self._changed: dict[int, BeltPart] = {}
        self._limit = parts
        self._belt = Belt(timing)
        self._late_in_a_row = self._rejects_in_a_row = 0
        self.latched: set[int] = set()  # faults that a person has to clear
        self._challenge = self._restored = False  # the next part is one; there are parts of a line control that died
        self.position = BeltPosition(timing.fastest) if timing.counts is not None else None

    @property
    def accepting(self) -> bool:
        """Whether a trigger opens a part."""
        return self.room > 0

    @property
    def room(self) -> int:
        """How many more triggers may open parts."""
        if self.stopped or not self.running or self.latched:
            return 0
        return max(0, self._limit - self.ledger.triggers) if self._limit else UNLIMITED

    @property
    def open_parts(self) -> int:
        """How many parts have no outcome yet."""
        return sum(not part.ended for part in self._belt.busy)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the last trigger was taken, or the line was stopped, and no part is on the belt."""
        return (self.stopped or 0 < self._limit <= self.ledger.triggers) and not self._belt

    def next_due(self, *, lazy: bool = False) -> float | None:
        """When `handle` has to be called with a Tick at the latest; None while the belt is empty.

        lazy: without the moments at which parts that passed are forgotten: that may wait until something else happens.
        """
        return self._belt.next_due(lazy=lazy)

    def next_order(self) -> float:
        """When a part without a verdict, or one to be ejected, has to be seen to, to a fraction of a ms; infinity for none."""
        return self._belt.next_order()

    def changes(self) -> list[BeltPart]:
        """The parts that `handle` changed since this was last asked."""
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    def restore(self, parts: list[BeltPart], ledger: Ledger, now: float) -> list[Action]:
        """Take over the belt of a line control that died. Parts without an outcome are UNINSPECTED(restart)."""
        self.ledger = ledger
        for part in parts:
            self._belt.add(part)
        actions: list[Action] = []
        self._restored = bool(parts)
        for part in parts:
            part.restored = True
            if part.ended and part.to_eject and part.verdict is not None:  # the PLC may not have heard it
                actions.append(Report(part.id, part.verdict, part.cause, part.score, True))
        return actions + self._lose(now, lambda part: not part.ended)

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
            for part in self._belt.of(event.part):
                if part.verdict is Verdict.PASS and not part.ended:
                    self._end(part, now, actions)
        elif isinstance(event, Confirm):
            self._confirm(event, actions)
        elif isinstance(event, OrderFailed):
            self.ledger.failed_orders += 1
            actions.append(Alarm(0, f"the PLC did not take the command to eject part {event.part}: {event.reason}"))
        elif isinstance(event, LinkLost):
            if self.accepting or self.open_parts or any(part.to_eject and not part.ordered and not part.held for part in self._belt.busy):
                self.ledger.link_losses += 1  # after the last part the PLC may go
                actions.append(Alarm(0, f"the PLC is not heard: {event.reason}"))
        elif isinstance(event, Encoder):
            if self.position is not None:
                self._move(self.position, event, now, actions)
        elif isinstance(event, BeltStopped):
            if self.position is not None:
                self.position.stop()
                self._project(self.position)
            else:
                self._hold(actions)
        elif isinstance(event, Clear):
            actions += [FaultOver(code) for code in sorted(self.latched)]
            self.latched.clear()
            self._late_in_a_row = self._rejects_in_a_row = 0
        elif isinstance(event, Challenge):
            self._challenge = True
        elif isinstance(event, RuntimeReady):
            self.running = True
        elif isinstance(event, RuntimeLost):
            self.running = False
            actions += self._lose(now, lambda part: part.verdict is None)
        elif isinstance(event, Stop):
            self._stop(now, actions)
        self._advance(now, actions)
        return actions

    def _trigger(self, event: Trigger, now: float, actions: list[Action]) -> None:
        stood = now - event.age
        if self._restored and any(part.restored and abs(part.triggered - stood) < SAME for part in self._belt.of(event.part)):
            return  # said again, since the line control that kept it died before it acknowledged it
        self.ledger.triggers += 1
        part = BeltPart(event.part, self.ledger.triggers, event.encoder, stood, stood + self.timing.travel)
        part.challenge, self._challenge = self._challenge, False
        lost = self.position is not None and not self._track(part, self.position)
        twins = list(self._belt.of(event.part))
        self._belt.add(part)
        self._changed[part.trigger] = part
        if lost:
            actions.append(Alarm(0, f"part {part.id} came with encoder count {part.encoder}, which cannot be"))
            self._uninspected(part, Cause.UNMATCHED, now, actions)
        if not twins and not lost:
            actions.append(Expose(part.id, part.encoder, part.trigger, stood))
            return
        if not twins:
            return
        actions.append(Alarm(0, f"part {part.id} was triggered twice while on the belt: the two cannot be told apart"))
        for twin in [*twins, part]:
            if not twin.ended:
                self._uninspected(twin, Cause.UNMATCHED, now, actions)

    def _track(self, part: BeltPart, position: BeltPosition) -> bool:
        """Note where the ejector is for a part. False: its count is missing or wrong, and only the time since its trigger is known."""
        assert self.timing.counts is not None
        if part.encoder is None or not position.read(part.encoder, part.triggered):
            return False
        part.target = wrapped(part.encoder + self.timing.counts)
        if not math.isinf(moment := position.moment(part.target)):
            part.due = moment
        return True

    def _move(self, position: BeltPosition, event: Encoder, now: float, actions: list[Action]) -> None:
        before = position.count
        if not position.read(event.count, now - event.age):
            self.ledger.encoder_glitches += 1
            if position.count != before:  # it goes on from another count: where the parts are is not known any more
                for part in self._belt:
                    part.target, part.held = None, True
                    if part.verdict is None:
                        self._uninspected(part, Cause.UNMATCHED, now, actions)
                actions.append(Alarm(0, f"the encoder jumped from {before} to {event.count}: the PLC has to eject what lies there itself"))
            return
        self._project(position, now)

    def _project(self, position: BeltPosition, now: float = math.inf) -> None:
        for part in self._belt.project(position, now):
            self._changed[part.trigger] = part

    def _verdict(self, event: PartVerdict, now: float, actions: list[Action]) -> None:
        part = next((p for p in self._belt.of(event.part) if event.trigger in (None, p.trigger)), None)
        if part is None or part.verdict is not None or now >= part.due - self.timing.lead:
            self.ledger.late_verdicts += 1
            if part is not None and event.verdict is Verdict.REJECT and now < part.due:
                self._reject_late(part, now, actions)
            return  # a part without a verdict is ended by _advance
        if self._late_in_a_row >= self.timing.late_in_a_row and FaultCode.LATE not in self.latched:
            actions.append(FaultOver(FaultCode.LATE))
        self._late_in_a_row = 0
        if event.verdict is Verdict.UNINSPECTED:
            self._uninspected(part, event.cause or Cause.CAMERA, now, actions)
            return
        if part.challenge and event.verdict is Verdict.PASS:
            self._uninspected(part, Cause.CHALLENGE, now, actions)
            part.to_eject = True
            return
        part.verdict, part.score = event.verdict, event.score
        self._changed[part.trigger] = part
        actions.append(Report(part.id, part.verdict, None, part.score, part.verdict is Verdict.REJECT))
        if part.verdict is Verdict.REJECT:
            part.to_eject = True
            self._end(part, now, actions)

    def _reject_late(self, part: BeltPart, now: float, actions: list[Action]) -> None:
        """A part that is known to be bad is ejected, late or not, also where uninspected parts may pass."""
        if part.verdict is None:
            self._uninspected(part, Cause.LATE, now, actions)
            self._count_late(actions)
        if part.cause is Cause.LATE and not part.to_eject:
            part.to_eject = True
            self._belt.place(part)
            self._changed[part.trigger] = part
            actions.append(Report(part.id, Verdict.UNINSPECTED, Cause.LATE, None, True))
            self._order(part, actions)

    def _count_late(self, actions: list[Action]) -> None:
        self._late_in_a_row += 1
        if self._late_in_a_row == self.timing.late_in_a_row:
            text = f"{self._late_in_a_row} verdicts in a row were late: slow the belt, or lengthen its travel"
            self._alarm(FaultCode.LATE, text, actions)

    def _alarm(self, code: int, text: str, actions: list[Action]) -> None:
        """Tell a fault; some stop the line."""
        if code in {STOPPING[name] for name in self.timing.stop_on}:
            self.latched.add(code)
            text += ". The line takes no parts until it is cleared: `lineside clear LINE.toml`, or CLEAR of the PLC"
        actions.append(Alarm(code, text))

    def _hold(self, actions: list[Action]) -> None:
        """The times of the parts on the belt are worth nothing any more: no REJECT is timed by them.

        The PLC, which knows where they are, ejects those without a PASS by the fail-safe rule.
        """
        held = [part for part in self._belt if not part.ordered]
        for part in held:
            part.held = True
            self._changed[part.trigger] = part
        if held:
            actions.append(Alarm(0, f"the belt stopped with {len(held)} parts on it: the PLC has to eject those without a PASS itself"))

    def _lose(self, now: float, lost: Callable[[BeltPart], bool]) -> list[Action]:
        """These parts get no verdict any more: take the safe action for them at once."""
        actions: list[Action] = []
        for part in self._belt:
            if lost(part):
                self._uninspected(part, Cause.RESTART, now, actions)
        return actions

    def _uninspected(self, part: BeltPart, cause: Cause, now: float, actions: list[Action]) -> None:
        part.verdict, part.cause, part.score = Verdict.UNINSPECTED, cause, None
        part.to_eject = self.timing.eject_uninspected
        actions.append(Report(part.id, part.verdict, cause, None, part.to_eject))
        self._end(part, now, actions)

    def _confirm(self, event: Confirm, actions: list[Action]) -> None:
        part = next((p for p in self._belt.of(event.part) if p.ordered and not p.confirmed), None)
        if part is None:
            self.ledger.unexpected_confirms += 1
            actions.append(Alarm(0, f"part {event.part} left at the ejector without a command"))
            return
        part.confirmed = True
        self._changed[part.trigger] = part
        self.ledger.confirmed += 1

    def _stop(self, now: float, actions: list[Action]) -> None:
        self.stopped = True
        for part in self._belt:
            if part.verdict is None:
                self._uninspected(part, Cause.STOPPED, now, actions)
            if part.to_eject and not part.ordered and not part.held:  # the delay in the command does the waiting
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
        for part in list(itertools.takewhile(lambda part: now >= part.due - lead, self._belt.busy)):
            if part.verdict is None:
                self._uninspected(part, Cause.LATE, now, actions)
                self._count_late(actions)
            elif not part.ended and now >= part.due - lead / 2:
                self._uninspected(part, Cause.LINK, now, actions)
            if part.to_eject and not part.ordered and not part.held:
                self._order(part, actions)
        gone = self._belt.gone(now)
        unconfirmed = [part for part in gone if part.ordered and not part.confirmed]
        self.ledger.unconfirmed += len(unconfirmed)
        if unconfirmed and "unconfirmed" in self.timing.stop_on:
            self._alarm(FaultCode.UNCONFIRMED, f"part {unconfirmed[0].id} was to be ejected and was not seen to leave", actions)
        for part in gone:
            if part.challenge:
                self._challenged(part, actions)
        for part in gone:
            part.gone = True
            self._belt.remove(part)
            self._changed[part.trigger] = part

    def _challenged(self, part: BeltPart, actions: list[Action]) -> None:
        said = part.verdict.value if part.verdict is not None else "no verdict"
        why = f" ({part.cause.value})" if part.cause else ""
        text = (f"challenge part {part.id}: {said}{why}, {'' if part.ordered else 'not '}commanded, "
                f"{'' if part.confirmed else 'not '}seen to leave")
        passed = part.verdict is Verdict.REJECT and part.ordered and part.confirmed
        actions.append(Challenged(part.id, passed, text))
        if not passed:
            self._alarm(FaultCode.CHALLENGE, text, actions)

    def _order(self, part: BeltPart, actions: list[Action]) -> None:
        if part.held:
            return
        part.ordered = True
        self._changed[part.trigger] = part
        actions.append(Order(part.id, part.due, part.target))

    def _end(self, part: BeltPart, now: float, actions: list[Action]) -> None:
        if part.to_eject and part.target is not None and not part.ordered:
            self._order(part, actions)  # by count: it may be said at any time before
        assert part.verdict is not None and not part.ended
        part.ended, part.ended_at = True, now
        self._belt.place(part)
        self._changed[part.trigger] = part
        if part.verdict is Verdict.PASS:
            self.ledger.passed += 1
        elif part.verdict is Verdict.REJECT:
            self.ledger.rejected += 1
        else:
            self.ledger.uninspected += 1
            self.ledger.causes[(part.cause or Cause.CAMERA).value] += 1
        actions.append(self.outcome(part))
        self._rejects_in_a_row = self._rejects_in_a_row + 1 if part.verdict is Verdict.REJECT else 0
        if self._rejects_in_a_row == self.timing.rejects_in_a_row > 0:
            text = f"{self._rejects_in_a_row} parts in a row were rejected: look at the parts, the camera and the light"
            self._alarm(FaultCode.REJECTS, text, actions)
        elif self._rejects_in_a_row == 0 < self.timing.rejects_in_a_row and FaultCode.REJECTS not in self.latched:
            actions.append(FaultOver(FaultCode.REJECTS))

    def outcome(self, part: BeltPart) -> Ended:
        """The outcome of a part that has one."""
        assert part.verdict is not None
        return Ended(part.id, part.verdict, part.cause, part.score, part.encoder, part.triggered, part.ended_at, part.trigger, self.session)

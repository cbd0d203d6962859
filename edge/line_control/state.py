"""The rules of line control as a pure state machine: ``(event, now) -> actions``, with no I/O and no clock of its own.

Every trigger opens a part. Every part ends with exactly one of PASS, REJECT and UNINSPECTED(cause) before it reaches
the ejector. What is not PASS is ejected (UNINSPECTED unless the line file lets it pass). Times are seconds of one
monotonic clock.

A part's timeline, where ``due`` is the moment at which it reaches the ejector:

    trigger
    due - lead      no verdict yet: UNINSPECTED(late). If the part is to be ejected, the PLC is sent a REJECT
    due - lead / 2  the PLC has not acknowledged a PASS: UNINSPECTED(link), the PLC is sent a REJECT
    due             a part that is not ejected is forgotten
    due + confirm   an ejected part is forgotten; without a confirmation it counts as unconfirmed
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from edge.line_control.belt import Belt
from edge.line_control.line_faults import LineFaults
from edge.line_control.parts import UNLIMITED, BeltPart, BeltTiming, Ledger
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

# s: after a restart, a trigger of the same id within this time is the PLC's repetition of a known one
SAME_TRIGGER = 0.03


class LineState:
    """The parts on the belt and their ledger."""

    def __init__(self, timing: BeltTiming, parts: int = 0, *, run_id: str = "", running: bool = True) -> None:
        """parts: accept no more than so many triggers; 0: no limit.

        running: whether the runtime is ready from the start.
        """
        self.timing = timing
        self.ledger = Ledger()
        self.stopped = False
        self.running = running
        self.run_id = run_id
        self.position = BeltPosition(timing.fastest) if timing.counts is not None else None
        self._changed: dict[int, BeltPart] = {}
        self._limit = parts
        self._belt = Belt(timing)
        self._faults = LineFaults(timing)
        self.latched = self._faults.latched  # faults that stop the line until a person clears them
        self._next_is_challenge = False
        self._restored = False  # whether there are parts of a line control that died

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
        """Whether nothing is left to do: no trigger is accepted any more, and the belt is empty."""
        return (self.stopped or 0 < self._limit <= self.ledger.triggers) and not self._belt

    def next_due(self, *, lazy: bool = False) -> float | None:
        """When `handle` must be called with a Tick at the latest; None while the belt is empty.

        lazy: do not wake for parts that passed and only have to be forgotten; the next event does that.
        """
        return self._belt.next_due(lazy=lazy)

    def next_order(self) -> float:
        """When the next REJECT must be sent, which has to be exact to a fraction of a ms; infinity if there is none."""
        return self._belt.next_order()

    def changes(self) -> list[BeltPart]:
        """The parts that have changed since the last call."""
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    def restore(self, parts: list[BeltPart], ledger: Ledger, now: float) -> list[Action]:
        """Take over the belt of a line control that died. Parts without an outcome become UNINSPECTED(restart)."""
        self.ledger = ledger
        for part in parts:
            self._belt.add(part)
        actions: list[Action] = []
        self._restored = bool(parts)
        for part in parts:
            part.restored = True
            if part.ended and part.to_eject and part.verdict is not None:  # the PLC may not have received this
                actions.append(Report(part.id, part.verdict, part.cause, part.score, True))
        return actions + self._end_lost(now, lambda part: not part.ended)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle one event, and everything that is due at ``now``. Events come in order of time."""
        actions: list[Action] = []
        if (handler := HANDLERS.get(type(event))) is not None:
            handler(self, event, now, actions)
        self._advance(now, actions)
        return actions

    # One method for each type of event: see HANDLERS.

    def _on_trigger(self, event: Trigger, now: float, actions: list[Action]) -> None:
        at = now - event.age
        if self._restored and any(part.restored and abs(part.triggered - at) < SAME_TRIGGER
                                  for part in self._belt.of(event.part)):
            return  # retransmitted: line control saved the trigger, but died before it acknowledged it
        self.ledger.triggers += 1
        part = BeltPart(event.part, self.ledger.triggers, event.encoder, at, at + self.timing.travel)
        part.challenge, self._next_is_challenge = self._next_is_challenge, False
        lost = self.position is not None and not self._track(part, self.position)
        twins = list(self._belt.of(event.part))
        self._belt.add(part)
        self._changed[part.trigger] = part
        if lost:
            count = "no encoder count" if part.encoder is None else f"the impossible encoder count {part.encoder}"
            actions.append(Alarm(0, f"part {part.id} came with {count}"))
            self._uninspected(part, Cause.UNMATCHED, now, actions)
        if not twins and not lost:
            actions.append(Expose(part.id, part.encoder, part.trigger, at))
            return
        if not twins:
            return
        actions.append(Alarm(0, f"part {part.id} was triggered twice while on the belt: the two cannot be told apart"))
        for twin in [*twins, part]:
            if not twin.ended:
                self._uninspected(twin, Cause.UNMATCHED, now, actions)

    def _on_trigger_refused(self, event: TriggerRefused, now: float, actions: list[Action]) -> None:
        self.ledger.refused_triggers += 1
        actions.append(Alarm(0, f"part {event.part} came while the line was not ready"))

    def _on_verdict(self, event: PartVerdict, now: float, actions: list[Action]) -> None:
        part = next((p for p in self._belt.of(event.part) if event.trigger in (None, p.trigger)), None)
        if part is None or part.verdict is not None or now >= part.due - self.timing.lead:
            self.ledger.late_verdicts += 1
            if part is not None and event.verdict is Verdict.REJECT and now < part.due:
                self._reject_late(part, now, actions)
            return  # _advance ends a part that has no verdict
        self._faults.verdict_in_time(actions)
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

    def _on_verdict_delivered(self, event: VerdictDelivered, now: float, actions: list[Action]) -> None:
        for part in self._belt.of(event.part):
            if part.verdict is Verdict.PASS and not part.ended:
                self._end(part, now, actions)

    def _on_confirm(self, event: Confirm, now: float, actions: list[Action]) -> None:
        part = next((p for p in self._belt.of(event.part) if p.ordered and not p.confirmed), None)
        if part is None:
            self.ledger.unexpected_confirms += 1
            actions.append(Alarm(0, f"part {event.part} left at the ejector without a command"))
            return
        part.confirmed = True
        self._changed[part.trigger] = part
        self.ledger.confirmed += 1

    def _on_order_failed(self, event: OrderFailed, now: float, actions: list[Action]) -> None:
        self.ledger.failed_orders += 1
        actions.append(Alarm(0, f"the PLC did not take the command to eject part {event.part}: {event.reason}"))

    def _on_link_lost(self, event: LinkLost, now: float, actions: list[Action]) -> None:
        if self.accepting or self.open_parts or any(part.awaits_ejection for part in self._belt.busy):
            self.ledger.link_losses += 1  # after the last part the PLC may go
            actions.append(Alarm(0, f"the PLC is not heard: {event.reason}"))

    def _on_encoder(self, event: Encoder, now: float, actions: list[Action]) -> None:
        if self.position is None:
            return
        before = self.position.count
        if self.position.read(event.count, now - event.age):
            self._project(self.position, now)
            return
        self.ledger.encoder_glitches += 1
        if self.position.count != before:  # it continues from another count: the parts' positions are unknown
            for part in self._belt:
                part.target, part.held = None, True
                if part.verdict is None:
                    self._uninspected(part, Cause.UNMATCHED, now, actions)
            text = f"the encoder jumped from {before} to {event.count}: the PLC must eject the parts on the belt itself"
            actions.append(Alarm(0, text))

    def _on_belt_stopped(self, event: BeltStopped, now: float, actions: list[Action]) -> None:
        if self.position is not None:
            self.position.stop()
            self._project(self.position)
            return
        # Parts tracked by time are lost now: no REJECT is sent. The PLC knows where they are and ejects those without a
        # PASS.
        held = [part for part in self._belt if not part.ordered]
        for part in held:
            part.held = True
            self._changed[part.trigger] = part
        if held:
            text = f"the belt stopped with {len(held)} parts on it: the PLC must eject those without a PASS itself"
            actions.append(Alarm(0, text))

    def _on_clear(self, event: Clear, now: float, actions: list[Action]) -> None:
        self._faults.clear(actions)

    def _on_challenge(self, event: Challenge, now: float, actions: list[Action]) -> None:
        self._next_is_challenge = True

    def _on_runtime_ready(self, event: RuntimeReady, now: float, actions: list[Action]) -> None:
        self.running = True

    def _on_runtime_lost(self, event: RuntimeLost, now: float, actions: list[Action]) -> None:
        self.running = False
        actions += self._end_lost(now, lambda part: part.verdict is None)

    def _on_stop(self, event: Stop, now: float, actions: list[Action]) -> None:
        self.stopped = True
        for part in self._belt:
            if part.verdict is None:
                self._uninspected(part, Cause.STOPPED, now, actions)
            if part.awaits_ejection:  # sent now, since nobody will wait: the command says when to fire
                self._order(part, actions)

    # What the handlers share.

    def _track(self, part: BeltPart, position: BeltPosition) -> bool:
        """Set the count at which a part reaches the ejector.

        False: its own count is missing or wrong, only its trigger's time is known.
        """
        assert self.timing.counts is not None
        if part.encoder is None or not position.read(part.encoder, part.triggered):
            return False
        part.target = wrapped(part.encoder + self.timing.counts)
        if not math.isinf(moment := position.moment(part.target)):
            part.due = moment
        return True

    def _project(self, position: BeltPosition, now: float = math.inf) -> None:
        for part in self._belt.project(position, now):
            self._changed[part.trigger] = part

    def _reject_late(self, part: BeltPart, now: float, actions: list[Action]) -> None:
        """A part known to be bad is ejected even if its verdict was late and uninspected parts may pass."""
        if part.verdict is None:
            self._uninspected(part, Cause.LATE, now, actions)
            self._faults.verdict_late(actions)
        if part.cause is Cause.LATE and not part.to_eject:
            part.to_eject = True
            self._belt.place(part)
            self._changed[part.trigger] = part
            actions.append(Report(part.id, Verdict.UNINSPECTED, Cause.LATE, None, True))
            self._order(part, actions)

    def _end_lost(self, now: float, lost: Callable[[BeltPart], bool]) -> list[Action]:
        """End the parts that will get no verdict any more as UNINSPECTED(restart)."""
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

    def close(self, now: float) -> list[Action]:
        """End the parts whose PASS the PLC never acknowledged. No event may follow."""
        actions: list[Action] = []
        for part in self._belt:
            if not part.ended:
                self._uninspected(part, Cause.LINK, now, actions)
        return actions

    def _advance(self, now: float, actions: list[Action]) -> None:
        """Do everything that is due."""
        lead = self.timing.lead
        for part in list(itertools.takewhile(lambda part: now >= part.due - lead, self._belt.busy)):
            if part.verdict is None:
                self._uninspected(part, Cause.LATE, now, actions)
                self._faults.verdict_late(actions)
            elif not part.ended and now >= part.due - lead / 2:
                self._uninspected(part, Cause.LINK, now, actions)
            if part.awaits_ejection:
                self._order(part, actions)
        if gone := self._belt.gone(now):
            self._remove(gone, actions)

    def _remove(self, gone: list[BeltPart], actions: list[Action]) -> None:
        """Forget parts that have left the belt, and check what became of them."""
        unconfirmed = [part for part in gone if part.ordered and not part.confirmed]
        self.ledger.unconfirmed += len(unconfirmed)
        if unconfirmed and "unconfirmed" in self.timing.stop_on:
            text = f"part {unconfirmed[0].id} was to be ejected and was not seen to leave"
            self._faults.report(FaultCode.UNCONFIRMED, text, actions)
        for part in gone:
            if part.challenge:
                self._finish_challenge(part, actions)
        for part in gone:
            part.gone = True
            self._belt.remove(part)
            self._changed[part.trigger] = part

    def _finish_challenge(self, part: BeltPart, actions: list[Action]) -> None:
        verdict = part.verdict.value if part.verdict is not None else "no verdict"
        why = f" ({part.cause.value})" if part.cause else ""
        text = (f"challenge part {part.id}: {verdict}{why}, {'' if part.ordered else 'not '}commanded, "
                f"{'' if part.confirmed else 'not '}seen to leave")
        passed = part.verdict is Verdict.REJECT and part.ordered and part.confirmed
        actions.append(Challenged(part.id, passed, text))
        if not passed:
            self._faults.report(FaultCode.CHALLENGE, text, actions)

    def _order(self, part: BeltPart, actions: list[Action]) -> None:
        if part.held:
            return
        part.ordered = True
        self._changed[part.trigger] = part
        actions.append(Order(part.id, part.due, part.target))

    def _end(self, part: BeltPart, now: float, actions: list[Action]) -> None:
        if part.to_eject and part.target is not None and not part.ordered:
            self._order(part, actions)  # by encoder count: it can be sent at any time before
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
        self._faults.part_ended(part.verdict, actions)

    def outcome(self, part: BeltPart) -> Ended:
        """The outcome of a part that has one."""
        assert part.verdict is not None
        return Ended(part.id, part.verdict, part.cause, part.score, part.encoder, part.triggered, part.ended_at,
                     part.trigger, self.run_id)


# LinkBack and Tick change nothing by themselves. Any: each method takes its own type of event.
HANDLERS: dict[type, Callable[[LineState, Any, float, list[Action]], None]] = {  # type: ignore[explicit-any]
    Trigger: LineState._on_trigger, TriggerRefused: LineState._on_trigger_refused, PartVerdict: LineState._on_verdict,
    VerdictDelivered: LineState._on_verdict_delivered, Confirm: LineState._on_confirm,
    OrderFailed: LineState._on_order_failed, LinkLost: LineState._on_link_lost, Encoder: LineState._on_encoder,
    BeltStopped: LineState._on_belt_stopped, Clear: LineState._on_clear, Challenge: LineState._on_challenge,
    RuntimeReady: LineState._on_runtime_ready, RuntimeLost: LineState._on_runtime_lost, Stop: LineState._on_stop,
}

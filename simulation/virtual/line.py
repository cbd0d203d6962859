"""A line in virtual time: the real `LineState` with a model of belt, PLC, wire and runtime, event by event.

It tests line control's own rules over millions of parts, so it imports `edge.line_control`. The simulated PLC in
`simulation.plc`, which tests the protocol, does not.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from edge.base.errors import LinesideError
from edge.line_control.parts import BeltTiming
from edge.part.events import (
    Action,
    BeltStopped,
    Confirm,
    Ended,
    Event,
    Expose,
    LinkBack,
    LinkLost,
    Order,
    OrderFailed,
    PartVerdict,
    Report,
    RuntimeLost,
    RuntimeReady,
    Stop,
    Tick,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.part.verdict import Cause, Verdict
from simulation.scenario.file import Scenario
from simulation.virtual.belt import EJECT, PASS, REJECT, RELEASE, RELEASED, BeltItem, VirtualBelt
from simulation.virtual.control import VirtualControl

WIRE = 0.002  # s for a message
BEAT = 0.05  # s between heartbeats
SILENCE = 0.2  # s without heartbeats, after which the PLC stops triggering
GIVE_UP = 0.22  # s after which the PLC gives up a trigger
DRIFT = 0.01  # share by which the belt's speed drifts unnoticed


class VirtualLine:
    """A line in virtual time.

    `run` it once; it raises LinesideError, naming the moment and the part, where a rule is broken.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.counts: Counter[str] = Counter()
        self.now = 0.0
        self._scenario, self._rates = scenario, scenario.virtual
        self._random = random.Random(scenario.seed)
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._pitch, self._nominal = 1 / scenario.rate, 1.0
        self._timing = BeltTiming(scenario.travel_ms / 1000, scenario.lead_ms / 1000, 0.3,
                                  scenario.uninspected == "eject")
        self._belt = VirtualBelt(self._timing.travel, 0.4 * self._pitch)
        self._belt_event = 0
        self.control = VirtualControl(self._timing, self.counts, self._fail)
        self._runtime_life = 0
        self._link = self._plc_ready = True
        self._wire_down, self._wire_up = 0.0, 0.0  # when the last message arrives: a wire keeps the order
        self._serial, self._id = 0, 0
        self._open: dict[int, BeltItem] = {}  # by trigger: parts of this run without an outcome
        self._unsettled: dict[int, BeltItem] = {}  # by serial: parts that have not left, or have no outcome
        self._at(0.0, self._feed)

    def run(self, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Run until the last part has left and has an outcome."""
        total = self._scenario.count
        shown = 0
        while self._agenda:
            due = self.control.state.next_due() if self.control.alive else None
            if due is not None and due < self._agenda[0][0]:
                self._move(max(due, self.now))
                self._event(Tick())
            else:
                moment, _, action, arguments = heapq.heappop(self._agenda)
                self._move(max(moment, self.now))
                action(*arguments)
            if self._serial - shown >= 1000:
                shown = self._serial
                progress(shown, total)
            if self._serial >= total and not self._unsettled:
                break
        if self._unsettled:
            self._fail(f"{len(self._unsettled)} parts have no end", next(iter(self._unsettled.values())))
        self.control.add_counts()
        self.counts["wrong_part"], self.counts["missed"] = self._belt.wrong_part, self._belt.missed

    # -- time
    # -----------------------------------------------------------------------------------------------------------

    def _at(self, moment: float, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._agenda, (moment, next(self._order), action, arguments))

    def _move(self, now: float) -> None:
        self.now = now
        self._belt.move(now)

    def _fail(self, text: str, item: BeltItem | None = None) -> None:
        raise LinesideError(f"at {self.now:.3f} s of virtual time: {text}", got=item, expected="every rule to hold",
                            next=f"Seed {self._scenario.seed}, part {self._serial}: run it again with "
                                 f"--count {self._serial + 100}.")

    def _chance(self, per_1000: float) -> bool:
        return self._random.random() * 1000 < per_1000

    # -- the belt and the PLC
    # -------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        s, r, draw = self._scenario, self._rates, self._random
        if self._serial >= s.count:
            return
        gap = self._pitch * (1 + draw.uniform(-s.jitter, s.jitter)) / self._nominal
        self._at(self.now + gap, self._feed)
        if not self._plc_ready:
            self._set_ready(True)  # the newest heartbeat says so, if it does
        if not self._plc_ready or self._belt.speed == 0:
            return
        self._serial += 1
        self._id = self._id % 0xFFFFFFFF + 1
        id = self._id
        if self._belt.items and self._chance(r.repeated_ids):
            id = draw.choice(self._belt.items).id
            self.counts["repeated_ids"] += 1
        item = BeltItem(self._serial, id, self.now, self._belt.time + self._belt.travel, draw.random() >= s.defect_rate)
        self._belt.put(item)
        self._unsettled[item.serial] = item
        self._arm()
        self._to_line(self._trigger, item)
        for rate, fault in (
                (r.lost_links, self._lose_link), (r.lost_runtimes, self._lose_runtime),
                (r.control_restarts, self._kill_control), (r.belt_stops, self._stop_belt),
                (r.speed_changes, self._change_speed), (r.false_confirms, self._false_confirm)):
            if self._chance(rate):
                self._at(self.now + draw.random() * self._pitch, fault)

    def _arm(self) -> None:
        """Look at the belt again when the next part reaches the ejector."""
        self._belt_event += 1
        moment = self._belt.moment(self._belt.next_time())
        if moment < float("inf"):
            self._at(moment, self._leave, self._belt_event)

    def _leave(self, number: int) -> None:
        if number != self._belt_event:
            return
        for item in self._belt.settle():
            self.counts["ejected"] += item.ejected
            self.counts["ejected_by_failsafe"] += item.by_failsafe
            self.counts["passed_ejector"] += item.passed
            if item.ejected:
                if self._chance(self._rates.missing_confirms):
                    self.counts["missing_confirms"] += 1
                else:
                    self._to_line(self._deliver, Confirm(item.id))
            if item.outcome is not None or not item.taken:
                self._settle(item)
        self._arm()

    def _settle(self, item: BeltItem) -> None:
        """A part has left, and has its outcome if the line ever knew of it: do both agree?"""
        if not item.taken and self._trigger_under_way(item):
            return
        self._unsettled.pop(item.serial, None)
        if item.outcome is None:
            self.counts["not_taken"] += 1
            if item.passed:
                self._fail("a part that the line never took has passed", item)
        elif item.passed and item.outcome != "PASS":
            # The PLC had its PASS, and the ACK was lost, or the process that waited for it: the PASS cannot be taken
            # back.
            if not item.truth or item.verdict not in RELEASED:
                self._fail("a part without a PASS has passed", item)
            self.counts["passed_released" if item.verdict == RELEASE else "passed_unacknowledged"] += 1
        elif item.ejected and item.outcome == "PASS":
            self._fail("a part with a PASS was ejected", item)

    def _trigger_under_way(self, item: BeltItem) -> bool:
        return self.now - item.triggered < GIVE_UP + WIRE

    # -- the wire
    # -------------------------------------------------------------------------------------------------------

    def _to_line(self, action: Callable[..., None], *arguments: object) -> None:
        self._wire_up = max(self._wire_up, self.now + WIRE * self._random.uniform(0.5, 2))
        self._at(self._wire_up, action, *arguments)

    def _to_plc(self, action: Callable[..., None], *arguments: object) -> None:
        self._wire_down = max(self._wire_down, self.now + WIRE * self._random.uniform(0.5, 2))
        self._at(self._wire_down, action, *arguments, self.control.life)

    def _deliver(self, event: Event, life: int | None = None) -> None:
        if self.control.alive and self._link and life in (None, self.control.life):
            self._event(event)

    def _trigger(self, item: BeltItem) -> None:
        if not (self.control.alive and self._link):
            if self.now - item.triggered < GIVE_UP:
                self._at(self.now + 0.02, self._trigger, item)
            elif item.passed or item.ejected:
                self._settle(item)
            return
        if self.control.state.room == 0:
            self.counts["refused"] += 1
            self._event(TriggerRefused(item.id))
            return
        before = self.control.state.ledger.triggers
        killed = self._chance(self._rates.control_restarts)  # after the part was kept, before the ACK
        actions = self.control.handle(Trigger(item.id, item.serial & 0x7FFFFFFF, self.now - item.triggered), self.now)
        if self.control.state.ledger.triggers == before + 1:
            item.taken = True
            self._open[before + 1] = item
        elif not item.taken:
            self._fail("a trigger opened no part", item)
        if killed:
            self._kill_control()
            self._at(self.now + 0.02, self._trigger, item)
        else:
            self._act(actions)

    def _verdict_arrived(self, id: int, code: int, life: int) -> None:
        """A VERDICT has reached the PLC."""
        if life == self.control.life and self._link and (item := self._belt.find(id)) is not None:
            item.verdict = code
            self._arm()
            self._to_line(self._deliver, VerdictDelivered(id), life)

    def _reject_arrived(self, id: int, due: float, life: int) -> None:
        """A REJECT has reached the PLC."""
        if life != self.control.life:
            return
        if not self._link or self._chance(self._rates.failed_orders) or not self._belt.command(id, due):
            self.counts["failed_orders"] += 1
            self._at(max(self.now, due + 0.005), self._deliver, OrderFailed(id, "no acknowledgement"), life)
        self._arm()

    # -- the runtime
    # ----------------------------------------------------------------------------------------------------

    def _expose(self, expose: Expose) -> None:
        item, draw, r = self._open.get(expose.trigger), self._random, self._rates
        if item is None or self._chance(r.no_verdicts):
            self.counts["no_verdicts"] += 1
            return
        verdict = PartVerdict(expose.part, Verdict.PASS if item.truth else Verdict.REJECT, None,
                              0.1 if item.truth else 0.9, expose.trigger)
        if self._chance(r.engine_errors):
            verdict = replace(verdict, verdict=Verdict.UNINSPECTED, cause=Cause.ENGINE, score=None)
        latency = draw.uniform(0.01, 0.06)
        if self._chance(r.late_verdicts):
            latency = draw.uniform(0.8, 1.5) * self._timing.travel
        self._at(self.now + latency, self._found, verdict, self.control.life, self._runtime_life)

    def _found(self, verdict: PartVerdict, life: int, runtime_life: int) -> None:
        if self.control.alive and (life, runtime_life) == (self.control.life, self._runtime_life):
            self._event(verdict)

    # -- line control
    # ---------------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        self._act(self.control.handle(event, self.now))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Expose):
                self._expose(action)
            elif isinstance(action, Report):
                code = {Verdict.PASS: PASS,
                        Verdict.REJECT: REJECT}.get(action.verdict, EJECT if action.eject else RELEASE)
                self._to_plc(self._verdict_arrived, action.part, code)
            elif isinstance(action, Order):
                self._to_plc(self._reject_arrived, action.part, action.due)
            elif isinstance(action, Ended):
                self._ended(action)

    def _ended(self, ended: Ended) -> None:
        item = self._open.pop(ended.trigger, None)
        if item is None or item.id != ended.part or item.serial & 0x7FFFFFFF != ended.encoder:
            self._fail(f"an outcome of a part that has one, or of another part: {ended}", item)
            return
        if ended.verdict is not Verdict.UNINSPECTED and (ended.verdict is Verdict.PASS) != item.truth:
            self._fail(f"the verdict of another part: {ended}", item)
        item.outcome, item.cause = ended.verdict.value, ended.cause.value if ended.cause else None
        if item.passed or item.ejected:
            self._settle(item)

    # -- faults ------------------------------------------------------------------------------------------------

    def _set_ready(self, ready: bool) -> None:
        self._plc_ready = ready and self.control.alive and self._link and self.control.state.running

    def _lose_link(self) -> None:
        if not self._link:
            return
        self._link = False
        self.counts["lost_links"] += 1
        duration = self._random.choice((0.05, 0.15, 0.5, 2.0)) * self._random.uniform(0.5, 1.5)
        if duration > SILENCE:
            self._at(self.now + SILENCE, self._set_ready, False)
            self._at(self.now + SILENCE, self._link_lost)
        self._at(self.now + duration, self._link_back, duration > SILENCE)

    def _link_lost(self) -> None:
        if self.control.alive:
            self._event(LinkLost("no heartbeat"))

    def _link_back(self, lost: bool) -> None:
        self._link = True
        if lost and self.control.alive:
            self._event(LinkBack())
        self._at(self.now + BEAT, self._set_ready, True)

    def _lose_runtime(self) -> None:
        if not (self.control.alive and self.control.state.running):
            return
        self.counts["lost_runtimes"] += 1
        self._runtime_life += 1
        self._event(RuntimeLost())
        self._at(self.now + BEAT * self._random.random(), self._set_ready, False)
        self._at(self.now + self._random.uniform(0.3, 2.0), self._runtime_ready)

    def _runtime_ready(self) -> None:
        if self.control.alive and not self.control.state.running:
            self._event(RuntimeReady())
            self._at(self.now + BEAT, self._set_ready, True)

    def _kill_control(self) -> None:
        if not self.control.alive:
            return
        self.counts["control_restarts"] += 1
        self.control.kill()
        self._at(self.now + SILENCE, self._set_ready, False)
        self._at(self.now + self._random.uniform(0.1, 1.0), self._restore)

    def _restore(self) -> None:
        self._act(self.control.restore(self._open, self.now))
        self._event(Tick())
        self._at(self.now + self._random.uniform(0.0, 0.2), self._runtime_ready)

    def _stop_belt(self) -> None:
        if self._belt.speed == 0:
            return
        self.counts["belt_stops"] += 1
        self._belt.stop()
        self._arm()
        self._deliver(BeltStopped())
        self._at(self.now + self._random.uniform(0.2, 3.0), self._start_belt)

    def _start_belt(self) -> None:
        self._belt.speed = self._nominal
        self._arm()

    def _change_speed(self) -> None:
        """The speed drifts a little; or it is set anew, for which the line is stopped and gets a new travel time."""
        if self._belt.speed == 0 or not (self.control.alive and self._link):
            return
        self.counts["speed_changes"] += 1
        if self._random.random() < 0.8:
            self._belt.speed = self._nominal * (1 + self._random.uniform(-DRIFT, DRIFT))
            self._arm()
            return
        self._nominal = self._random.uniform(0.5, 1.5)
        self._belt.speed = self._nominal
        self._arm()
        self._event(BeltStopped())
        self._event(Stop())
        self._act(self.control.state.close(self.now))
        self._timing = replace(self._timing, travel=self._belt.travel / self._nominal)
        self.control.renew(self._timing)
        if self._open:
            self._fail("a line that was stopped left a part without an outcome", next(iter(self._open.values())))

    def _false_confirm(self) -> None:
        self.counts["false_confirms"] += 1
        self._deliver(Confirm(self._random.choice(self._belt.items).id if self._belt.items else 0))

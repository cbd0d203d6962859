"""Line control: it owns the PLC link, the `LineState` and the belt's file, and tells the runtime what to expose and what became of it."""

from __future__ import annotations

import gc
import math

from edge.line_control.belt_file import BeltFile, left_over
from edge.line_control.messages import Done, Heard, State, Told, Welcome, Written, decode, encode
from edge.line_control.parts import STOPPING, counts_of
from edge.line_control.runtime_side import Runtime
from edge.line_control.state import LineState
from edge.part.events import (
    Action,
    Alarm,
    Challenged,
    Ended,
    Event,
    Expose,
    FaultOver,
    LinkBack,
    Order,
    Report,
    RuntimeLost,
    RuntimeReady,
    Stop,
    Tick,
)
from edge.plc.link import LineStatus, PlcLink
from edge.plc.tape import LiveTape, Tape

HEARTBEAT = 0.050  # s
FLUSH = 0.3  # s that the last commands have to be acknowledged in when the line stops
FAREWELL = 5.0  # s that the runtime has to write the last outcomes into the journal
STATE_EVERY = 0.2  # s between two messages with the counts
SPIN = 0.0002  # s before an order's moment that are spent looking at the clock, since a sleep may end late
COLLECT_EVERY = 60.0  # s between looks for garbage, while no part is on the belt


class LineControl:
    """Runs the belt until it is stopped or finished."""

    def __init__(self, link: PlcLink, state: LineState, belt: BeltFile, runtime: Runtime, *, pulse_ms: int, welcome: Welcome,
                 tape: Tape | None = None) -> None:
        """The link is open; ``tape`` is also the link's."""
        self.state = state
        self._link, self._belt, self._runtime, self._tape = link, belt, runtime, tape or LiveTape()
        self._now = self._tape.now
        self._pulse_ms, self._welcome = pulse_ms, welcome
        self._connected = False  # a runtime
        self._ready = False  # it said so
        self._faults: set[int] = set()
        self._next_state = self._next_collection = 0.0
        self._left_over: list[Ended] = []  # of a run that was killed

    def run(self) -> None:
        """Until the end. Whatever happens, the port is closed then, which makes the PLC take the safe action."""
        try:
            self._act(self._restored())
            self._loop()
            self._say_farewell()
        finally:
            self._link.close()
            self._belt.close()

    def _restored(self) -> list[Action]:
        left, now = self._belt.left, self._now()
        self._belt.latched = self.state.latched
        if left is None:
            return []
        if left.session == self.state.session:
            self.state.latched.update(left.latched)
            self._faults.update(left.latched)
            actions = self.state.restore(left.parts, left.ledger, now)
            self._belt.write(self.state.changes(), self.state.ledger)
            return [Alarm(0, f"line control was started again with {len(left.parts)} parts on the belt"), *actions]
        self._left_over = left_over(left, self._belt.wall_clock)
        return []

    def _loop(self) -> None:
        beat = 0.0
        flush_until: float | None = None
        while True:
            now = self._now()
            if now >= beat:
                self._link.heartbeat(self._status())
                beat = now + HEARTBEAT
                self._keep_house(now)
            due = self.state.next_due(lazy=True)
            wake = min(beat, math.inf if due is None else due, self.state.next_order() - SPIN)
            self._link.room = self.state.room
            self._tape.flush()
            events: list[Event | Alarm | FaultOver] = [*self._link.read_events(max(0.0, wake - self._now()), self._runtime.fileno())]
            events += self._heard()
            now = self._now()
            for event in events or [Tick()]:
                if isinstance(event, (Alarm, FaultOver)):
                    self._act([event])
                    continue
                self._handle(event, now)
                if isinstance(event, LinkBack):
                    for code in self._faults:
                        self._link.fault(code)
            self._runtime.flush(hurried_only=True)
            if self.state.stopped:
                flush_until = flush_until or now + FLUSH
                if now >= flush_until or self._link.idle:
                    actions = self.state.close(now)
                    self._belt.write(self.state.changes(), self.state.ledger)
                    self._act(actions)
                    self._link.heartbeat(LineStatus.OFFLINE)  # sends what that reported
                    return
            elif self.state.finished and self._link.idle and self._ready:
                return

    def _handle(self, event: Event, now: float) -> None:
        """Take an event in; what it changes is kept before it is acted on."""
        before, latched = counts_of(self.state.ledger), len(self.state.latched)
        actions = self.state.handle(event, now)
        changed = self.state.changes()
        if changed or before != counts_of(self.state.ledger) or latched != len(self.state.latched):
            self._tape.flush()  # a line control that is killed leaves a belt and a tape that fit each other
            self._belt.write(changed, self.state.ledger)
        self._act(actions)

    def _heard(self) -> list[Event | Alarm | FaultOver]:
        """What the runtime, the supervisor and signals say."""
        heard: list[Event | Alarm | FaultOver] = []
        for item in self._tape.take("heard", self._runtime.hear, encode, decode):
            if item is Heard.STOP or item is Heard.ORPHANED:  # without the supervisor nothing would start what dies from now on
                if not self.state.stopped:
                    heard.append(Stop())
            elif item is Heard.CONNECTED or item is Heard.CLOSED:
                self._runtime_gone(heard)
                self._connected = item is Heard.CONNECTED
            elif isinstance(item, Written):
                self._belt.written(item.triggers, self.state.ledger)
            elif isinstance(item, RuntimeReady):
                self._ready = True
                heard.append(item)
                unwritten = [self.state.outcome(part) for part in self._belt.unwritten()]  # by the runtime before it
                for ended in [*self._left_over, *unwritten]:
                    self._runtime.tell(ended)
            else:
                heard.append(item)
        return heard

    def _runtime_gone(self, heard: list[Event | Alarm | FaultOver]) -> None:
        if self._ready:
            heard.append(RuntimeLost())
            heard += [FaultOver(code) for code in self._faults if code not in STOPPING.values()]  # the next one tells its own
        self._ready = False

    def _keep_house(self, now: float) -> None:
        if self._connected:
            if now >= self._next_state:
                self._next_state = now + STATE_EVERY
                self._runtime.tell(State(self.state.ledger, self._link.counters()))
            self._runtime.flush()
        if now >= self._next_collection and self.state.next_due() is None:
            self._next_collection = now + COLLECT_EVERY
            gc.collect()

    def _say_farewell(self) -> None:
        """The last counts; then wait until the journal has all outcomes."""
        self._runtime.tell(State(self.state.ledger, self._link.counters()))
        self._runtime.tell(Done())
        self._runtime.flush()
        deadline = self._now() + FAREWELL
        while self._connected and self._belt.unwritten() and self._now() < deadline:
            self._runtime.flush()
            self._runtime.wait(0.05)
            self._heard()
            self._tape.flush()

    def _status(self) -> LineStatus:
        if not self.state.running and not self.state.stopped:
            return LineStatus.STARTING
        if self.state.latched:
            return LineStatus.FAULT
        if not self.state.accepting:
            return LineStatus.OFFLINE
        return LineStatus.DEGRADED if self._faults or not self._welcome.realtime else LineStatus.READY

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Report):
                self._link.report(action)
            elif isinstance(action, Order):
                self._link.pulse(action.part, action.due, self._pulse_ms, action.count)
            elif isinstance(action, (Ended, Expose, Challenged)):
                self._runtime.tell(action, hurry=not isinstance(action, Ended))  # the journal may wait for a heartbeat
            elif isinstance(action, Alarm):
                self._runtime.tell(Told(action.text))
                if action.code and action.code not in self._faults:
                    self._faults.add(action.code)
                    self._link.fault(action.code)
            elif isinstance(action, FaultOver) and action.code in self._faults:
                self._faults.discard(action.code)
                if not self._faults:
                    self._link.fault(0)

"""Line control: connects the PLC link, the `LineState`, the belt file and the runtime."""

from __future__ import annotations

import gc
import math

from edge.line_control.belt_file import BeltFile, outcomes_of_earlier_run
from edge.line_control.messages import (
    ControlEnded,
    Counts,
    JournalWritten,
    OperatorMessage,
    ProcessEvent,
    decode,
    encode,
)
from edge.line_control.parts import STOPPING, counts_of
from edge.line_control.runtime_connection import Runtime
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
ACKNOWLEDGE_WAIT = 0.3  # s for the PLC to acknowledge the last commands when the line stops
JOURNAL_WAIT = 5.0  # s for the runtime to write the last outcomes into the journal
MESSAGE_WAIT = 0.05  # s for a message of the runtime meanwhile
COUNTS_EVERY = 0.2  # s between two `Counts`
SPIN = 0.0002  # s: wake so long before a REJECT is due, since a sleep may end late
COLLECT_EVERY = 60.0  # s between two garbage collections


class LineControl:
    """Runs the belt until it is stopped or finished."""

    def __init__(self, link: PlcLink, state: LineState, belt: BeltFile, runtime: Runtime, *, pulse_ms: int,
                 realtime: bool, tape: Tape | None = None) -> None:
        """link: already open. pulse_ms: how long the ejector fires. tape: the link's as well.

        realtime: whether the process has the priority it needs; without it the line is degraded.
        """
        self.state = state
        self._link, self._belt, self._runtime, self._tape = link, belt, runtime, tape or LiveTape()
        self._now = self._tape.now
        self._pulse_ms, self._realtime = pulse_ms, realtime
        self._connected = False  # whether a runtime is connected
        self._ready = False  # whether it has said that it is ready
        self._faults: set[int] = set()  # codes that the PLC was told of
        self._next_counts = self._next_collection = 0.0
        self._earlier_outcomes: list[Ended] = []  # of a run that was killed

    def run(self) -> None:
        """Run until the end. The port is closed in any case, which makes the PLC take the safe action."""
        try:
            self._act(self._restore())
            self._loop()
            self._hand_over_outcomes()
        finally:
            self._link.close()
            self._belt.close()

    def _restore(self) -> list[Action]:
        """Continue with what the belt file holds."""
        actions: list[Action] = []
        if (kept := self._belt.set_aside) is not None:
            text = (f"the belt file is of another version of Lineside and was renamed to {kept}: the journal lacks the "
                    "outcomes of the parts that were on the belt then")
            actions.append(Alarm(0, text))
        saved, now = self._belt.saved, self._now()
        self._belt.latched = self.state.latched
        if saved is None:
            return actions
        if saved.run_id != self.state.run_id:
            self._earlier_outcomes = outcomes_of_earlier_run(saved, self._belt.wall_clock)
            return actions
        self.state.latched.update(saved.latched)
        self._faults.update(saved.latched)
        restored = self.state.restore(saved.parts, saved.ledger, now)
        self._belt.write(self.state.changes(), self.state.ledger)
        return [*actions, Alarm(0, f"line control was restarted with {len(saved.parts)} parts on the belt"), *restored]

    def _loop(self) -> None:
        beat = 0.0
        close_at: float | None = None
        while True:
            now = self._now()
            if now >= beat:
                self._link.heartbeat(self._status())
                beat = now + HEARTBEAT
                self._send_counts(now)
                self._collect_garbage(now)
            due = self.state.next_due(lazy=True)
            wake = min(beat, math.inf if due is None else due, self.state.next_order() - SPIN)
            self._link.room = self.state.room
            self._tape.flush()
            events: list[Event | Alarm | FaultOver] = [
                *self._link.read_events(max(0.0, wake - self._now()), self._runtime.fileno())]
            events += self._from_processes()
            now = self._now()
            for event in events or [Tick()]:
                if isinstance(event, (Alarm, FaultOver)):
                    self._act([event])
                    continue
                self._handle(event, now)
                if isinstance(event, LinkBack):
                    for code in self._faults:
                        self._link.fault(code)
            self._runtime.flush(urgent_only=True)
            if self.state.stopped:
                close_at = close_at or now + ACKNOWLEDGE_WAIT
                if now >= close_at or self._link.idle:
                    actions = self.state.close(now)
                    self._belt.write(self.state.changes(), self.state.ledger)
                    self._act(actions)
                    self._link.heartbeat(LineStatus.OFFLINE)  # also sends the verdicts of these actions
                    return
            elif self.state.finished and self._link.idle and self._ready:
                return

    def _handle(self, event: Event, now: float) -> None:
        """Handle an event: save what changes, then act."""
        before, latched = counts_of(self.state.ledger), len(self.state.latched)
        actions = self.state.handle(event, now)
        changed = self.state.changes()
        if changed or before != counts_of(self.state.ledger) or latched != len(self.state.latched):
            self._tape.flush()  # if this process is killed now, belt file and tape still agree
            self._belt.write(changed, self.state.ledger)
        self._act(actions)

    def _from_processes(self) -> list[Event | Alarm | FaultOver]:
        """Events from the runtime, the supervisor and signals. "heard" is this entry's name in recorded sessions."""
        events: list[Event | Alarm | FaultOver] = []
        for item in self._tape.take("heard", self._runtime.receive, encode, decode):
            # without a supervisor nothing would restart a dead process
            if item is ProcessEvent.STOP or item is ProcessEvent.ORPHANED:
                if not self.state.stopped:
                    events.append(Stop())
            elif item is ProcessEvent.CONNECTED or item is ProcessEvent.CLOSED:
                self._runtime_lost(events)
                self._connected = item is ProcessEvent.CONNECTED
            elif isinstance(item, JournalWritten):
                self._belt.mark_written(item.triggers, self.state.ledger)
            elif isinstance(item, RuntimeReady):
                self._ready = True
                events.append(item)
                # the runtime before may have lost them
                unwritten = [self.state.outcome(part) for part in self._belt.unwritten()]
                for ended in [*self._earlier_outcomes, *unwritten]:
                    self._runtime.put(ended)
            else:
                events.append(item)
        return events

    def _runtime_lost(self, events: list[Event | Alarm | FaultOver]) -> None:
        if self._ready:
            events.append(RuntimeLost())
            # The next runtime reports its own faults. Those that stop the line are line control's.
            events += [FaultOver(code) for code in self._faults if code not in STOPPING.values()]
        self._ready = False

    def _send_counts(self, now: float) -> None:
        if self._connected:
            if now >= self._next_counts:
                self._next_counts = now + COUNTS_EVERY
                self._runtime.put(Counts(self.state.ledger, self._link.counters()))
            self._runtime.flush()

    def _collect_garbage(self, now: float) -> None:
        """Collect while the belt is empty: the collector does not run by itself, since it would delay a REJECT."""
        if now >= self._next_collection and self.state.next_due() is None:
            self._next_collection = now + COLLECT_EVERY
            gc.collect()

    def _hand_over_outcomes(self) -> None:
        """Send the last counts, and wait until all outcomes are in the journal."""
        self._runtime.put(Counts(self.state.ledger, self._link.counters()))
        self._runtime.put(ControlEnded())
        self._runtime.flush()
        deadline = self._now() + JOURNAL_WAIT
        while self._connected and self._belt.unwritten() and self._now() < deadline:
            self._runtime.flush()
            self._runtime.wait(MESSAGE_WAIT)
            self._from_processes()
            self._tape.flush()

    def _status(self) -> LineStatus:
        if not self.state.running and not self.state.stopped:
            return LineStatus.STARTING
        if self.state.latched:
            return LineStatus.FAULT
        if not self.state.accepting:
            return LineStatus.OFFLINE
        return LineStatus.DEGRADED if self._faults or not self._realtime else LineStatus.READY

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Report):
                self._link.report(action)
            elif isinstance(action, Order):
                self._link.pulse(action.part, action.due, self._pulse_ms, action.count)
            elif isinstance(action, (Ended, Expose, Challenged)):
                # the journal can wait for the next heartbeat
                self._runtime.put(action, urgent=not isinstance(action, Ended))
            elif isinstance(action, Alarm):
                self._runtime.put(OperatorMessage(action.text))
                if action.code and action.code not in self._faults:
                    self._faults.add(action.code)
                    self._link.fault(action.code)
            elif isinstance(action, FaultOver) and action.code in self._faults:
                self._faults.discard(action.code)
                if not self._faults:
                    self._link.fault(0)

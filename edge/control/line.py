"""Line control: it owns the PLC link, the `LineState` and the belt's file, and tells the runtime what to expose and what became of it."""

from __future__ import annotations

import contextlib
import gc
import math
import select
import socket
import threading
import time

from edge.control.belt_file import BeltFile, left_over
from edge.control.events import (
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
from edge.control.messages import Channel, Done, State, Told, Welcome, Written
from edge.control.parts import STOPPING
from edge.control.state import LineState
from edge.plc import LineStatus, PlcLink

HEARTBEAT = 0.050  # s
FLUSH = 0.3  # s that the last commands have to be acknowledged in when the line stops
FAREWELL = 5.0  # s that the runtime has to write the last outcomes into the journal
STATE_EVERY = 0.2  # s between two messages with the counts
SPIN = 0.0002  # s before an order's moment that are spent looking at the clock, since a sleep may end late
COLLECT_EVERY = 60.0  # s between looks for garbage, while no part is on the belt


class LineControl:
    """Runs the belt until it is stopped or finished."""

    def __init__(self, link: PlcLink, state: LineState, belt: BeltFile, listener: socket.socket, *, pulse_ms: int, welcome: Welcome,
                 supervisor: int, asked_to_stop: threading.Event) -> None:
        """listener: where the runtime connects. supervisor: a file descriptor that ends when the supervisor is gone. The link is open."""
        self.state = state
        self._asked_to_stop = asked_to_stop  # by a signal
        self._link, self._belt, self._listener, self._supervisor = link, belt, listener, supervisor
        self._pulse_ms, self._welcome = pulse_ms, welcome
        self._runtime: Channel | None = None
        self._ready = False  # the runtime said so
        self._faults: set[int] = set()
        self._poll = select.epoll()
        listener.setblocking(False)
        for descriptor in (listener.fileno(), supervisor):
            self._poll.register(descriptor, select.EPOLLIN)
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
        left, now = self._belt.left, time.monotonic()
        self._belt.latched = self.state.latched
        if left is None:
            return []
        if left.session == self.state.session:
            self.state.latched.update(left.latched)
            self._faults.update(left.latched)
            actions = self.state.restore(left.parts, left.ledger, now)
            self._belt.write(self.state.changes(), self.state.ledger)
            return [Alarm(0, f"line control was started again with {len(left.parts)} parts on the belt"), *actions]
        self._left_over = left_over(left)
        return []

    def _loop(self) -> None:
        beat = 0.0
        flush_until: float | None = None
        while True:
            now = time.monotonic()
            if now >= beat:
                self._link.heartbeat(self._status())
                beat = now + HEARTBEAT
                self._keep_house(now)
            due = self.state.next_due(lazy=True)
            wake = min(beat, math.inf if due is None else due, self.state.next_order() - SPIN)
            self._link.room = self.state.room
            events: list[Event | Alarm | FaultOver] = [*self._link.read_events(max(0.0, wake - time.monotonic()), self._poll.fileno())]
            events += self._heard()
            now = time.monotonic()
            for event in events or [Tick()]:
                if isinstance(event, (Alarm, FaultOver)):
                    self._act([event])
                    continue
                self._handle(event, now)
                if isinstance(event, LinkBack):
                    for code in self._faults:
                        self._link.fault(code)
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
        before = {**vars(self.state.ledger), "latched": len(self.state.latched)}
        actions = self.state.handle(event, now)
        changed = self.state.changes()
        if changed or before != {**vars(self.state.ledger), "latched": len(self.state.latched)}:
            self._belt.write(changed, self.state.ledger)
        self._act(actions)

    def _heard(self) -> list[Event | Alarm | FaultOver]:
        """What the runtime, the supervisor and signals say."""
        heard: list[Event | Alarm | FaultOver] = []
        if self._asked_to_stop.is_set() and not self.state.stopped:
            heard.append(Stop())
        for descriptor, _ in self._poll.poll(0):
            if descriptor == self._listener.fileno():
                self._accept(heard)
            elif descriptor == self._supervisor:  # it is gone: nothing would start what dies from now on
                self._poll.unregister(self._supervisor)
                heard.append(Stop())
            elif self._runtime is not None:
                for message in self._runtime.receive():
                    if isinstance(message, Written):
                        self._belt.written(message.triggers, self.state.ledger)
                    elif isinstance(message, RuntimeReady):
                        self._ready = True
                        heard.append(message)
                        unwritten = [self.state.outcome(part) for part in self._belt.unwritten()]  # by the runtime before it
                        for ended in [*self._left_over, *unwritten]:
                            self._tell(ended)
                    else:
                        heard.append(message)
                if self._runtime.closed:
                    self._drop_runtime(heard)
        return heard

    def _accept(self, heard: list[Event | Alarm | FaultOver]) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            if self._runtime is not None:
                self._drop_runtime(heard)
            self._runtime = Channel(connection)
            self._poll.register(self._runtime.fileno(), select.EPOLLIN)
            self._runtime.send(self._welcome)

    def _drop_runtime(self, heard: list[Event | Alarm | FaultOver]) -> None:
        assert self._runtime is not None
        self._poll.unregister(self._runtime.fileno())
        self._runtime.close()
        self._runtime = None
        if self._ready:
            heard.append(RuntimeLost())
            heard += [FaultOver(code) for code in self._faults if code not in STOPPING.values()]  # the next one tells its own
        self._ready = False

    def _tell(self, message: object) -> None:
        if self._runtime is not None:
            self._runtime.send(message)

    def _keep_house(self, now: float) -> None:
        if self._runtime is not None:
            self._runtime.flush()
            if now >= self._next_state:
                self._next_state = now + STATE_EVERY
                self._tell(State(self.state.ledger, self._link.counters()))
        if now >= self._next_collection and self.state.next_due() is None:
            self._next_collection = now + COLLECT_EVERY
            gc.collect()

    def _say_farewell(self) -> None:
        """The last counts; then wait until the journal has all outcomes."""
        self._tell(State(self.state.ledger, self._link.counters()))
        self._tell(Done())
        deadline = time.monotonic() + FAREWELL
        while self._runtime is not None and self._belt.unwritten() and time.monotonic() < deadline:
            self._runtime.flush()
            self._poll.poll(0.05)
            self._heard()

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
                self._tell(action)
            elif isinstance(action, Alarm):
                self._tell(Told(action.text))
                if action.code and action.code not in self._faults:
                    self._faults.add(action.code)
                    self._link.fault(action.code)
            elif isinstance(action, FaultOver) and action.code in self._faults:
                self._faults.discard(action.code)
                if not self._faults:
                    self._link.fault(0)

"""The thread of line control: it owns the PLC link and the `LineState`, and tells the camera, the journal and the operator."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from edge.control.events import Action, Alarm, Ended, Event, Expose, FaultOver, LinkBack, Order, PartVerdict, Report, Stop, Tick
from edge.control.state import BeltTiming, LineState
from edge.plc import LineStatus, PlcLink

HEARTBEAT = 0.050  # s
PRIORITY = 50  # SCHED_FIFO, where the rights are there
FLUSH = 0.3  # s that the last commands have to be acknowledged in when the line stops


class LineControl:
    """Runs the belt in a thread of its own until it is stopped or finished."""

    def __init__(
        self, link: PlcLink, timing: BeltTiming, pulse_ms: int, *, parts: int, expose: Callable[[Expose], None],
        ended: Callable[[Ended], None], alarm: Callable[[str], None],
    ) -> None:
        """parts: stop after so many (0: never). The callbacks run in the control thread and must return at once."""
        self.state = LineState(timing, parts)
        self.realtime = False
        self.error: BaseException | None = None
        self._link = link
        self._pulse_ms = pulse_ms
        self._expose, self._ended, self._alarm = expose, ended, alarm
        self._inbox: deque[Event | Alarm | FaultOver] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._faults: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="line-control", daemon=True)

    def start(self) -> None:
        """Begin; the link is open already."""
        self._thread.start()

    def _post(self, message: Event | Alarm | FaultOver) -> None:
        self._inbox.append(message)
        with contextlib.suppress(BlockingIOError):  # it has plenty to wake it
            os.write(self._wake_write, b"x")

    def verdict(self, verdict: PartVerdict) -> None:
        """Hand a verdict to line control. Any thread."""
        self._post(verdict)

    def fault(self, code: int, text: str) -> None:
        """Tell the PLC and the operator of a fault, once until it is over. Any thread."""
        self._post(Alarm(code, text))

    def fault_over(self, code: int) -> None:
        """Tell the PLC that a fault is over, if it was told of it. Any thread."""
        self._post(FaultOver(code))

    def stop(self) -> None:
        """End every open part and close the port; returns at once."""
        self._post(Stop())

    def wait(self, timeout: float | None = None) -> bool:
        """Whether line control has ended."""
        return self._done.wait(timeout)

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # without the right to it: told as `realtime`, and as state degraded
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
            self.realtime = True
        try:
            self._loop()
        except BaseException as error:  # the runtime raises it; the closed port makes the PLC take the safe action
            self.error = error
            now = time.monotonic()
            for action in [*self.state.handle(Stop(), now), *self.state.close(now)]:
                if isinstance(action, Ended):
                    self._ended(action)
        finally:
            self._link.close()
            self._done.set()

    def _loop(self) -> None:
        beat = 0.0
        flush_until: float | None = None
        while True:
            now = time.monotonic()
            if now >= beat:
                self._link.heartbeat(self._status())
                beat = now + HEARTBEAT
            due = self.state.next_due()
            wake_at = beat if due is None else min(beat, due)
            self._link.room = self.state.room
            messages: list[Event | Alarm | FaultOver] = [*self._link.read_events(max(0.0, wake_at - time.monotonic()), self._wake_read)]
            while self._inbox:
                messages.append(self._inbox.popleft())
            now = time.monotonic()
            for message in messages or [Tick()]:
                if isinstance(message, (Alarm, FaultOver)):
                    self._act([message])
                else:
                    self._act(self.state.handle(message, now))
                    if isinstance(message, LinkBack):
                        for code in self._faults:
                            self._link.fault(code)
            if self.state.stopped:
                flush_until = flush_until or now + FLUSH
                if now >= flush_until or self._idle():
                    self._act(self.state.close(now))
                    self._link.heartbeat(LineStatus.OFFLINE)  # sends what that reported
                    return
            elif self.state.finished and self._idle():
                return

    def _idle(self) -> bool:
        return self._link.idle

    def _status(self) -> LineStatus:
        if not self.state.accepting:
            return LineStatus.OFFLINE
        return LineStatus.DEGRADED if self._faults or not self.realtime else LineStatus.READY

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Expose):
                self._expose(action)
            elif isinstance(action, Report):
                self._link.report(action)
            elif isinstance(action, Order):
                self._link.pulse(action.part, action.due, self._pulse_ms)
            elif isinstance(action, Ended):
                self._ended(action)
            elif isinstance(action, Alarm):
                self._alarm(action.text)
                if action.code and action.code not in self._faults:
                    self._faults.add(action.code)
                    self._link.fault(action.code)
            elif action.code in self._faults:  # FaultOver
                self._faults.discard(action.code)
                if not self._faults:
                    self._link.fault(0)

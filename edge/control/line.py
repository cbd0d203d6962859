"""The thread of line control: it owns the PLC link and the `LineState`, and tells the camera, the journal and the operator."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from edge.control.state import Action, Alarm, BeltTiming, Ended, Event, Expose, LineState, Order, PartVerdict, Report, Stop, Tick
from edge.plc import LineStatus, PlcLink

HEARTBEAT = 0.050  # s
PRIORITY = 50  # SCHED_FIFO, where the rights are there
FLUSH = 0.3  # s that the last commands have to be acknowledged in when the line stops


class LineControl:
    """Runs the belt in a thread of its own until it is stopped or finished."""

    def __init__(
        self, link: PlcLink, timing: BeltTiming, pulse_ms: int, *, parts: int, expose: Callable[[int, int | None], None],
        ended: Callable[[Ended], None], alarm: Callable[[str], None],
    ) -> None:
        """parts: stop after so many (0: never). The callbacks run in the control thread and must return at once."""
        self.state = LineState(timing, parts)
        self.realtime = False
        self.error: BaseException | None = None
        self._link = link
        self._pulse_ms = pulse_ms
        self._expose, self._ended, self._alarm = expose, ended, alarm
        self._inbox: deque[Event] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._faults: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="line-control", daemon=True)

    def start(self) -> None:
        """Begin; the link is open already."""
        self._thread.start()

    def post(self, event: Event) -> None:
        """Hand an event to line control, from any thread."""
        self._inbox.append(event)
        with contextlib.suppress(BlockingIOError):  # it has plenty to wake it
            os.write(self._wake_write, b"x")

    def verdict(self, verdict: PartVerdict) -> None:
        """Hand a verdict to line control."""
        self.post(verdict)

    def fault(self, code: int, text: str) -> None:
        """Tell the PLC and the operator of a fault, once until it is cleared. Any thread."""
        self.post(_Fault(code, text))  # type: ignore[arg-type]

    def stop(self) -> None:
        """End every open part and close the port; returns at once."""
        self.post(Stop())

    def wait(self, timeout: float | None = None) -> bool:
        """Whether line control has ended."""
        return self._done.wait(timeout)

    def _run(self) -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
            self.realtime = True
        except (PermissionError, OSError, AttributeError):
            pass  # reported by the runtime as degraded timing
        try:
            self._loop()
        except BaseException as error:  # the runtime raises it; the closed port makes the PLC take the safe action
            self.error = error
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
            self._link.accepting = self.state.accepting
            events = self._link.read_events(max(0.0, wake_at - time.monotonic()), self._wake_read)
            while self._inbox:
                events.append(self._inbox.popleft())
            now = time.monotonic()
            for event in events or [Tick()]:
                if isinstance(event, _Fault):
                    self._raise_fault(event)
                else:
                    self._act(self.state.handle(event, now))
            if self.state.stopped:
                flush_until = flush_until or now + FLUSH
                if now >= flush_until or self._idle():
                    self._act(self.state.close(now))
                    return
            elif self.state.finished and self._idle():
                return

    def _idle(self) -> bool:
        return bool(getattr(self._link, "idle", True))

    def _status(self) -> LineStatus:
        if not self.state.accepting:
            return LineStatus.OFFLINE
        return LineStatus.DEGRADED if self._faults or not self.realtime else LineStatus.READY

    def _raise_fault(self, fault: _Fault) -> None:
        if fault.code and fault.code not in self._faults:
            self._faults.add(fault.code)
            self._link.fault(fault.code)
            self._alarm(fault.text)
        elif not fault.code and self._faults:
            self._faults.clear()
            self._link.fault(0)

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Expose):
                self._expose(action.part, action.encoder)
            elif isinstance(action, Report):
                self._link.report(action)
            elif isinstance(action, Order):
                self._link.pulse(action.part, action.due, self._pulse_ms)
            elif isinstance(action, Ended):
                self._ended(action)
            elif isinstance(action, Alarm):
                if action.code:
                    self._link.fault(action.code)
                self._alarm(action.text)


class _Fault:
    """A fault of the runtime, on its way to the link."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text

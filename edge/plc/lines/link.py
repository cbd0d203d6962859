"""PLC link `lines`: the modem lines of a serial port. CTS triggers, RTS fires the ejector, DTR is ready, DSR confirms
or enables.

There are no messages: this link counts the parts itself, a PASS counts as delivered, and the line fires the ejector
itself. See docs/plc-lines.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import struct
import termios
from collections import Counter, deque

import serial

from edge.base.errors import LinkError
from edge.part.events import (
    Confirm,
    Event,
    LinkBack,
    LinkLost,
    OrderFailed,
    Report,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.part.verdict import Verdict
from edge.plc.common import LATE_BY, PORT_ERRORS, REOPEN_AFTER
from edge.plc.link import LineStatus
from edge.plc.tape import LiveTape, Tape

INPUTS_EVERY = 0.001  # s between two readings of the inputs
SPIN = 0.0002  # s before an edge of the ejector: busy-wait, since a sleep may end late


class LinesLink:
    """The line's side of one port: see `PlcLink`. Used by one thread."""

    def __init__(self, port: str, trigger: str = "rising", dsr: str = "confirm", dsr_active: str = "high",
                 reject: str = "low", ready: str = "blink", gap_ms: float = 5, debounce_ms: float = 2,
                 tape: Tape | None = None) -> None:
        """The keys of ``[plc]`` in the line file.

        gap_ms: least time between two pulses. debounce_ms: how long CTS must stay.
        """
        self.room = 0
        self._tape = tape or LiveTape()
        self._now = self._tape.now
        self._counts: Counter[str] = Counter(pulses=0, merged=0, bounces=0, port_reopened=0)
        self._name, self._dsr, self._blink = port, dsr, ready == "blink"
        self._trigger_level, self._dsr_high = trigger == "rising", dsr_active == "high"
        self._reject_high = reject == "high"
        self._gap, self._debounce = gap_ms / 1000, debounce_ms / 1000
        self._port: serial.Serial | None = None
        self._is_open = False
        self._part = 0
        self._cts = self._candidate = False  # CTS after debouncing; as last read
        self._since = 0.0  # when the candidate was first read
        self._sensor: bool | None = None
        self._ready = self._lamp = False
        self._up = False
        self._pulses: deque[list[float]] = deque()  # [on, off], s, in order
        self._firing = False
        self._ordered: deque[tuple[int, float]] = deque(maxlen=64)  # (part, due) of pulses that are not confirmed yet
        self._pending: list[Event] = []
        self._next_open = 0.0

    def open(self) -> None:
        try:
            self._open()
        except PORT_ERRORS as error:
            raise LinkError(f"cannot open the PLC's port {self._name}", got=str(error),
                            expected="a free serial port with modem lines",
                            next="Fix `port` under [plc] in the line file, or free the port.") from error

    def _open(self) -> None:
        lines = self._tape.take("open", self._open_port)
        self._is_open = True
        self._cts = self._candidate = bool(lines & termios.TIOCM_CTS)
        self._sensor = None
        self._up = False

    def _open_port(self) -> int:
        port = serial.Serial(None, timeout=0, exclusive=True)
        # the driver raises both when it opens the port; this sets them back at once
        port.rts, port.dtr = not self._reject_high, False
        port.port = self._name
        port.open()
        self._port = port
        return self._inputs()

    def _inputs(self) -> int:
        assert self._port is not None
        (lines,) = struct.unpack("i", fcntl.ioctl(self._port.fileno(), termios.TIOCMGET, struct.pack("i", 0)))
        return int(lines)

    def report(self, report: Report) -> None:
        if report.verdict is Verdict.PASS:
            self._pending.append(VerdictDelivered(report.part))

    def fault(self, code: int, part: int = 0) -> None:
        """There is no line for faults; a line that stops lowers DTR."""

    def pulse(self, part: int, due: float, width_ms: int, count: int | None = None) -> None:
        now = self._now()
        if now > due + LATE_BY or not self._is_open:
            self._pending.append(OrderFailed(part, "too late" if self._is_open else "the port is gone"))
            return
        self._ordered.append((part, due))
        on, off = max(due, now), max(due, now) + width_ms / 1000
        last = self._pulses[-1] if self._pulses else None
        if last is not None and on < last[1] + self._gap:
            if on - self._gap - last[0] >= (last[1] - last[0]) / 2:  # two pulses, the first one shortened
                last[1] = on - self._gap
            else:  # one pulse for both
                self._counts["merged"] += 1
                last[1] = max(last[1], off)
                return
        self._counts["pulses"] += 1
        self._pulses.append([on, off])

    def heartbeat(self, status: LineStatus) -> None:
        self._ready = status in (LineStatus.READY, LineStatus.DEGRADED)
        self._lamp = self._ready and not (self._blink and self._lamp)
        self._set("dtr", self._lamp)

    def _set(self, line: str, high: bool) -> None:
        if self._is_open:
            self._tape.sent(f"{line}={int(high)}")
            try:
                self._tape.take("set", lambda: setattr(self._port, line, high))
            except PORT_ERRORS as error:
                self._drop(str(error))

    def read_events(self, timeout: float, wake: int) -> list[Event]:
        end = self._now() + timeout
        while True:
            now = self._now()
            if not self._is_open and now >= self._next_open:
                self._reopen(now)
            self._fire(now)
            if self._is_open:
                try:
                    self._read_inputs(self._now())
                except PORT_ERRORS as error:
                    self._drop(str(error))
            if self._pending or now >= end:
                events, self._pending = self._pending, []
                return events
            edge = self._next_edge()
            wait = min(end - now, INPUTS_EVERY, edge - now - SPIN)
            if wait > 0 and self._woken(wake, wait):
                end = now  # read the inputs once more

    def _woken(self, wake: int, wait: float) -> bool:
        return self._tape.take("woken", lambda: bool(select.select([wake], [], [], wait)[0]))

    def _next_edge(self) -> float:
        if not self._pulses:
            return float("inf")
        return self._pulses[0][1] if self._firing else self._pulses[0][0]

    def _fire(self, now: float) -> None:
        """Switch the ejector at the edges that are due; busy-waits for one that is close."""
        while (edge := self._next_edge()) - now <= SPIN:
            self._tape.spin(edge)
            self._firing = not self._firing
            self._set("rts", self._firing == self._reject_high)
            if not self._firing:
                self._pulses.popleft()
            now = self._now()

    def _read_inputs(self, now: float) -> None:
        lines = self._tape.take("lines", self._inputs)
        self._read_sensor(bool(lines & termios.TIOCM_DSR) == self._dsr_high, now)
        cts = bool(lines & termios.TIOCM_CTS)
        if cts != self._candidate:
            self._counts["bounces"] += cts == self._cts
            self._candidate, self._since = cts, now
        if self._candidate != self._cts and now - self._since >= self._debounce:
            self._cts = self._candidate
            if self._cts == self._trigger_level:
                self._triggered(now - self._since)

    def _triggered(self, age: float) -> None:
        self._part += 1
        if self.room > 0 and self._up:
            self.room -= 1
            self._pending.append(Trigger(self._part, None, age))
        else:
            self._pending.append(TriggerRefused(self._part))

    def _read_sensor(self, active: bool, now: float) -> None:
        before, self._sensor = self._sensor, active
        if self._dsr == "enable":
            if active != self._up:
                self._up = active
                self._pending.append(LinkBack() if active else LinkLost("DSR says that the PLC is not ready"))
            return
        if not self._up:
            self._up = True
            self._pending.append(LinkBack())
        if self._dsr == "confirm" and active and before is False:
            fired = [entry for entry in self._ordered if entry[1] <= now]
            if fired:
                self._ordered.remove(fired[0])
            self._pending.append(Confirm(fired[0][0] if fired else 0))

    def _drop(self, reason: str) -> None:
        self._close_port()
        if self._up:
            self._pending.append(LinkLost(f"{self._name}: {reason}"))
        self._up = self._firing = False
        self._pending += [OrderFailed(part, "the port is gone") for part, due in self._ordered if due > self._now()]
        self._pulses.clear()
        self._ordered.clear()
        self._next_open = self._now() + REOPEN_AFTER

    def _reopen(self, now: float) -> None:
        try:
            self._open()
            self._counts["port_reopened"] += 1
        except PORT_ERRORS:
            self._close_port()
            self._next_open = now + REOPEN_AFTER

    @property
    def idle(self) -> bool:
        """Whether every pulse is over."""
        return not self._pulses and not self._pending

    def counters(self) -> dict[str, int]:
        """Pulses, pulses that two parts share, contact bounces, and how often the port was reopened."""
        return dict(self._counts)

    def close(self) -> None:
        if self._port is not None:
            with contextlib.suppress(*PORT_ERRORS):
                self._port.dtr = False
        self._close_port()  # this lowers RTS as well

    def _close_port(self) -> None:
        port, self._port, self._is_open = self._port, None, False
        if port is not None:
            with contextlib.suppress(*PORT_ERRORS):
                port.close()

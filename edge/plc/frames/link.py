"""PLC link `frames`: CRC-framed messages over a serial port (pyserial). The protocol is docs/plc-frames.md."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import stat
from pathlib import Path

import serial

from edge.base.errors import LinkError
from edge.part.events import (
    BeltStopped,
    Clear,
    Confirm,
    Encoder,
    Event,
    LinkBack,
    LinkLost,
    OrderFailed,
    Report,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.plc.common import LATE_BY, LINK_LOST_AFTER, PORT_ERRORS, REOPEN_AFTER, TriggerTimes, verdict_numbers
from edge.plc.link import LineStatus
from edge.plc.tape import LiveTape, Tape
from edge.plc.wire import Ack, Conversation, Frame, PlcClock, Settled, Type


class FramesLink:
    """The line's side of the protocol on one port. Used by one thread."""

    def __init__(self, port: str, baud: int, timing: str = "line", tape: Tape | None = None) -> None:
        """timing: ``line`` sends REJECTs; with ``plc`` the PLC ejects by the verdicts, with a shift register of its own."""
        self._tape = tape or LiveTape()
        self._now = self._tape.now
        self.room = 0
        self.reopened = 0
        self._name, self._baud, self._line_times = port, baud, timing == "line"
        self._belt_moves = True
        self._port: serial.Serial | None = None
        self._is_open = False
        self._conversation = Conversation(0)
        self._clock = PlcClock()
        self._session: int | None = None
        self._triggers = TriggerTimes()
        self._heard = float("-inf")  # when the PLC last sent something valid
        self._up = False
        self._next_open = 0.0
        self._pending: list[Event] = []

    def open(self) -> None:
        try:
            self._open()
        except PORT_ERRORS as error:
            raise LinkError(f"cannot open the PLC's port {self._name}", got=self._explain(error),
                            expected="a free serial port", next="Mend `port` under [plc] in the line file, or free the port.") from error

    def _explain(self, error: BaseException) -> str:
        path = Path(self._name)
        if not path.exists():
            return "no such port"
        if not stat.S_ISCHR(path.stat().st_mode):
            return "a path that is no serial port"
        if "exclusively lock" in str(error) or "busy" in str(error).lower():
            return "a port that another line or program has open"
        return str(error)

    def _open(self) -> None:
        session, sequence = self._tape.take("open", self._open_port)
        self._is_open = True
        self._conversation = Conversation(session, sequence)

    def _open_port(self) -> list[int]:
        self._port = serial.Serial(self._name, self._baud, timeout=0, write_timeout=0.05, exclusive=True)
        self._port.reset_input_buffer()
        return [secrets.randbelow(0x10000), secrets.randbelow(0x10000)]

    def report(self, report: Report) -> None:
        code, value = verdict_numbers(report)
        self._conversation.command(Type.VERDICT, code, report.part, value)

    def fault(self, code: int, part: int = 0) -> None:
        self._conversation.command(Type.FAULT, code, part)

    def pulse(self, part: int, due: float, width_ms: int, count: int | None = None) -> None:
        if not self._line_times:
            return
        if count is not None:
            self._conversation.command(Type.REJECT, 1, part, width_ms, count & 0xFFFFFFFF)
            return
        time = self._triggers.plc_time(part, due)
        if time is None:
            self._pending.append(OrderFailed(part, "its moment went with a restart; the PLC ejects it by the fail-safe rule"))
            return
        self._conversation.command(Type.REJECT, 0, part, width_ms, time, due + LATE_BY)

    def heartbeat(self, status: LineStatus) -> None:
        self._conversation.heartbeat(status)
        self._flush(self._now())

    def read_events(self, timeout: float, wake: int) -> list[Event]:
        now = self._now()
        if not self._is_open and now >= self._next_open:
            self._reopen(now)
        self._flush(now)
        if self._pending:
            timeout = 0.0
        retry = self._conversation.next_retry()
        if retry is not None:
            timeout = min(timeout, max(0.0, retry - now))
        if self._up:
            timeout = min(timeout, max(0.0, self._heard + LINK_LOST_AFTER - now))
        data = self._wait(timeout, wake)
        now = self._now()
        heard = self._conversation.heard
        frames, settled = self._conversation.received(data, self.room)
        events = [event for s in settled for event in self._settled(s)]
        if self._conversation.heard > heard:
            self._heard = now
            if not self._up:
                self._up = True
                events.insert(0, LinkBack())
        for frame, _ in frames:  # of those that waited, the last one tells the time best: before any is dated by it
            self._hear(frame, now)
        for frame, answer in frames:
            events += self._frame(frame, answer, now)
        if self._up and now - self._heard > LINK_LOST_AFTER:
            events += self._lost(f"no heartbeat for {1000 * LINK_LOST_AFTER:.0f} ms")
        events, self._pending = self._pending + events, []
        return events  # acknowledged by the next call: a trigger that is acknowledged must have been kept

    def _wait(self, timeout: float, wake: int) -> bytes:
        try:
            return self._tape.take("read", lambda: self._read(timeout, wake), bytes.hex, bytes.fromhex)
        except PORT_ERRORS as error:
            self._drop_port(str(error))
        return b""

    def _read(self, timeout: float, wake: int) -> bytes:
        port = self._port
        if port is None:
            select.select([wake], [], [], min(timeout, REOPEN_AFTER))
            return b""
        ready, _, _ = select.select([port.fileno(), wake], [], [], timeout)
        if port.fileno() not in ready:
            return b""
        if data := os.read(port.fileno(), 4096):  # pyserial's own would ask the port again whether it can be read
            return data
        raise OSError("the other end is gone")

    def _hear(self, frame: Frame, now: float) -> None:
        if frame.session != self._session:  # the PLC began anew, and so may its clock
            self._session, self._clock = frame.session, PlcClock()
        self._clock.heard(frame.time, now)

    def _frame(self, frame: Frame, answer: Ack, now: float) -> list[Event]:
        if frame.type == Type.PLC_HEARTBEAT:
            moves = bool(frame.code & 1)
            stopped, self._belt_moves = self._belt_moves and not moves, moves
            events: list[Event] = [BeltStopped()] if stopped else []
            return [*events, Encoder(frame.value, now - self._clock.moment(frame.time))] if frame.code & 2 else events
        if frame.type == Type.TRIGGER:
            if answer is Ack.NOT_READY:
                return [TriggerRefused(frame.part)]
            stood = self._clock.moment(frame.time)
            self._triggers.note(frame.part, frame.time, stood)
            return [Trigger(frame.part, frame.value if frame.code == 1 else None, now - stood)]
        return [Confirm(frame.part)] if frame.type == Type.CONFIRM else [Clear()] if frame.type == Type.CLEAR else []

    @staticmethod
    def _settled(settled: Settled) -> list[Event]:
        if settled.type is Type.VERDICT and settled.ack is Ack.DONE:
            return [VerdictDelivered(settled.part)]
        if settled.type is Type.REJECT and settled.ack is not Ack.DONE:
            return [OrderFailed(settled.part, "no acknowledgement" if settled.ack is None else settled.ack.name.lower().replace("_", " "))]
        return []

    def _flush(self, now: float) -> None:
        data, given_up = self._conversation.poll(now)
        self._pending += [event for settled in given_up for event in self._settled(settled)]
        if not self._is_open or not data:
            return
        self._tape.sent(data)
        try:
            self._tape.take("written", lambda: self._write(data))
        except PORT_ERRORS as error:  # a timeout too: part of the data may be out, and the PLC does not read
            self._drop_port(str(error))

    def _write(self, data: bytes) -> None:
        assert self._port is not None
        with contextlib.suppress(BlockingIOError):
            data = data[os.write(self._port.fileno(), data):]
        if data:
            self._port.write(data)

    def _lost(self, reason: str) -> list[Event]:
        self._up = False
        return [LinkLost(reason)]

    def _drop_port(self, reason: str) -> None:
        self._close_port()
        self._pending += [event for settled in self._conversation.abandon() for event in self._settled(settled)]
        if self._up:
            self._pending += self._lost(f"{self._name}: {reason}")
        self._next_open = self._now() + REOPEN_AFTER

    def _reopen(self, now: float) -> None:
        lost = self._conversation.abandon()
        self._pending += [event for settled in lost for event in self._settled(settled)]
        try:
            self._open()
            self.reopened += 1
        except PORT_ERRORS:
            self._close_port()
            self._next_open = now + REOPEN_AFTER

    @property
    def idle(self) -> bool:
        """Whether every command was acknowledged or given up, and every acknowledgement sent."""
        return self._conversation.idle

    def counters(self) -> dict[str, int]:
        """What went wrong on the wire since the port was last opened."""
        return {**self._conversation.decoder.counts, "repetitions": self._conversation.repetitions,
                "resent": self._conversation.resent, "port_reopened": self.reopened}

    def close(self) -> None:
        self._close_port()

    def _close_port(self) -> None:
        port, self._port, self._is_open = self._port, None, False
        if port is not None:
            try:
                port.close()
            except PORT_ERRORS:
                port.fd = None  # pyserial would try to close it again

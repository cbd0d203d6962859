"""PLC link `frames`: messages with a checksum over a serial port (pyserial).

docs/plc-frames.md describes the protocol.
"""

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
from edge.plc.common import (
    LATE_BY,
    LINK_LOST_AFTER,
    PORT_ERRORS,
    REOPEN_AFTER,
    TIME_LOST,
    TriggerTimes,
    verdict_numbers,
)
from edge.plc.link import LineStatus
from edge.plc.tape import LiveTape, Tape
from edge.plc.wire import VERSION, Ack, Conversation, Message, PlcClock, Settled, Type


class FramesLink:
    """The line's side of the protocol on one port: see `PlcLink`. Used by one thread."""

    def __init__(self, port: str, baud: int, timing: str = "line", tape: Tape | None = None) -> None:
        """timing: with "line" the line sends REJECTs; with "plc" the PLC ejects by the verdicts, with its own shift
        register.
        """
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
        self._plc_connection: int | None = None
        self._triggers = TriggerTimes()
        self._heard = float("-inf")  # when the last valid message arrived
        self._up = self._told_version = False
        self._next_open = 0.0
        self._pending: list[Event] = []

    def open(self) -> None:
        try:
            self._open()
        except PORT_ERRORS as error:
            raise LinkError(f"cannot open the PLC's port {self._name}", got=self._explain(error),
                            expected="a free serial port",
                            next="Fix `port` under [plc] in the line file, or free the port.") from error

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
        connection, sequence = self._tape.take("open", self._open_port)
        self._is_open = True
        self._conversation, self._told_version = Conversation(connection, sequence), False

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
            self._pending.append(OrderFailed(part, TIME_LOST))
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
        messages, settled = self._conversation.received(data, self.room)
        events = [event for s in settled for event in self._settled(s)]
        if self._conversation.heard > heard:
            self._heard = now
            if not self._up:
                self._up = True
                events.insert(0, LinkBack())
        for message, _ in messages:  # the last one shows the clock best, so read all before converting any time
            self._read_clock(message, now)
        for message, answer in messages:
            events += self._event(message, answer, now)
        if (other := self._conversation.other_version) is None:
            self._told_version = False
        elif self.room > 0 and not self._told_version:  # line control ignores a lost link until it takes parts
            self._told_version = True
            events += self._lost(f"it speaks version {other} of the `frames` protocol, and this line version {VERSION}")
        if self._up and now - self._heard > LINK_LOST_AFTER:
            events += self._lost(f"no heartbeat for {1000 * LINK_LOST_AFTER:.0f} ms")
        events, self._pending = self._pending + events, []
        return events  # the next call sends the acknowledgements, when line control has saved the triggers

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
        if data := os.read(port.fileno(), 4096):  # pyserial's read would ask once more whether the port can be read
            return data
        raise OSError("the other end is gone")

    def _read_clock(self, message: Message, now: float) -> None:
        if message.connection != self._plc_connection:  # the PLC restarted, and its clock may have too
            self._plc_connection, self._clock = message.connection, PlcClock()
        self._clock.heard(message.time, now)

    def _event(self, message: Message, answer: Ack, now: float) -> list[Event]:
        if message.type == Type.PLC_HEARTBEAT:
            moves = bool(message.code & 1)
            stopped, self._belt_moves = self._belt_moves and not moves, moves
            events: list[Event] = [BeltStopped()] if stopped else []
            return [*events, Encoder(message.value, now
                                     - self._clock.moment(message.time))] if message.code & 2 else events
        if message.type == Type.TRIGGER:
            if answer is Ack.NOT_READY:
                return [TriggerRefused(message.part)]
            stood = self._clock.moment(message.time)
            self._triggers.note(message.part, message.time, stood)
            return [Trigger(message.part, message.value if message.code == 1 else None, now - stood)]
        if message.type == Type.CONFIRM:
            return [Confirm(message.part)]
        return [Clear()] if message.type == Type.CLEAR else []

    @staticmethod
    def _settled(settled: Settled) -> list[Event]:
        if settled.type is Type.VERDICT and settled.ack is Ack.DONE:
            return [VerdictDelivered(settled.part)]
        if settled.type is Type.REJECT and settled.ack is not Ack.DONE:
            return [OrderFailed(settled.part, "no acknowledgement" if settled.ack is None
                                else settled.ack.name.lower().replace("_", " "))]
        return []

    def _flush(self, now: float) -> None:
        data, given_up = self._conversation.poll(now)
        self._pending += [event for settled in given_up for event in self._settled(settled)]
        if not self._is_open or not data:
            return
        self._tape.sent(data)
        try:
            self._tape.take("written", lambda: self._write(data))
        except PORT_ERRORS as error:  # including a timeout: the PLC does not read, and part of the data may be out
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

"""The `frames` protocol without a port: messages, sequence numbers, acknowledgements. docs/plc-frames.md describes it.

The page calls a message *frame* and the number of a sender's connection *session*; here a frame is a camera's image.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

VERSION = 1  # of the protocol; see `Message.version`
SYNC = b"LS"
LENGTH = 24
BODY = struct.Struct(">2sBBHHIiI")
CRC = struct.Struct(">I")
RETRY_AFTER = 0.020  # s
TRIES = 11  # the first sending and 10 repetitions
WINDOW = 32  # commands sent and not acknowledged yet
REMEMBERED = 128  # sequence numbers of the PLC's last commands


class Type(IntEnum):
    """Types of messages. Those below 0x80 come from the PLC."""

    PLC_HEARTBEAT = 0x01
    TRIGGER = 0x02
    CONFIRM = 0x03
    PLC_ACK = 0x04
    CLEAR = 0x05
    LINE_HEARTBEAT = 0x81
    VERDICT = 0x82
    REJECT = 0x83
    FAULT = 0x84
    LINE_ACK = 0x85


class Ack(IntEnum):
    """The answer to a command."""

    DONE = 0
    NOT_READY = 1
    TOO_LATE = 2
    UNKNOWN_PART = 3


# The highest valid code of each type.
PLC_CODES: dict[int, int] = {Type.PLC_HEARTBEAT: 3, Type.TRIGGER: 1, Type.CONFIRM: 0, Type.PLC_ACK: 3, Type.CLEAR: 0}


class Message(NamedTuple):
    """One message of 24 bytes. part: unsigned 32 bit; value: signed 32 bit; time: unsigned 32 bit, ms of the PLC's
    clock.

    connection: the sender's number for its open port, `session` in docs/plc-frames.md.
    """

    type: int
    code: int
    connection: int
    sequence: int
    part: int = 0
    value: int = 0
    time: int = 0

    def encode(self) -> bytes:
        """The 24 bytes."""
        body = BODY.pack(SYNC, *self)
        return body + CRC.pack(zlib.crc32(body))

    @staticmethod
    def decode(data: bytes) -> Message:
        """The message in 24 bytes whose checksum was already checked."""
        return Message(*BODY.unpack(data[:BODY.size])[1:])

    @property
    def version(self) -> int:
        """The version of the protocol that the sender of a heartbeat speaks: its `part`, where 0 stands for version 1.
        """
        return self.part or 1


class Decoder:
    """Turns the PLC's bytes into messages. Drops garbage byte by byte, so that no good message behind it is lost."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # garbage_bytes, crc_errors, unknown_frames
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes."""
        self._buffer += data
        messages = []
        position = 0
        while len(self._buffer) - position >= LENGTH:
            if not self._buffer.startswith(SYNC, position):
                position += 1
                self.counts["garbage_bytes"] += 1
                continue
            body = self._buffer[position:position + BODY.size]
            (crc,) = CRC.unpack_from(self._buffer, position + BODY.size)
            if crc != zlib.crc32(body):
                self.counts["crc_errors"] += 1
                self.counts["garbage_bytes"] += 1
                position += 1
                continue
            message = Message._make(BODY.unpack(body)[1:])
            if message.code > PLC_CODES.get(message.type, -1):
                self.counts["unknown_frames"] += 1
                self.counts["garbage_bytes"] += 1
                position += 1
                continue
            messages.append(message)
            position += LENGTH
        del self._buffer[:position]
        return messages


class PlcClock:
    """Converts the PLC's clock (ms, wraps at 2^32) to ours (s of ``time.monotonic``).

    A message can only be delayed, by this machine or by the PLC, so the smallest offset seen is the best estimate. The
    estimate may grow again by 200 ppm, which is more than two quartz clocks differ by.
    """

    DRIFT = 2e-4  # s per s

    def __init__(self) -> None:
        self._reference: int | None = None
        self._offset = 0.0
        self._heard = 0.0

    def heard(self, time: int, now: float) -> None:
        """A message with this time, which is not later than ``now``, arrived at ``now``."""
        if self._reference is None:
            self._reference, self._offset = time, now
        else:
            self._offset = min(now - self._since_reference(time), self._offset + self.DRIFT * (now - self._heard))
        self._heard = now

    def _since_reference(self, time: int) -> float:
        assert self._reference is not None
        return ((time - self._reference + 0x80000000) % 0x100000000 - 0x80000000) / 1000

    def moment(self, time: int) -> float:
        """A time of the PLC's clock (ms) on our clock (s)."""
        return self._offset + self._since_reference(time)


@dataclass(eq=False, slots=True)
class _Command:
    type: Type
    code: int
    part: int
    value: int
    time: int
    expires: float
    sequence: int = -1
    sent: float = float("-inf")
    tries: int = 0


class Settled(NamedTuple):
    """How a command of the line ended. ack: the PLC's answer; None: it was given up without one."""

    type: Type
    part: int
    ack: Ack | None


class Conversation:
    """The line's side of one connection. It numbers and repeats the line's commands, acknowledges the PLC's, and drops
    repetitions.

    Pure: it takes bytes and times, and returns bytes.
    """

    def __init__(self, connection: int, sequence: int = 0) -> None:
        """connection, sequence: random 16-bit numbers, new ones each time the port is opened."""
        self.decoder = Decoder()
        self.repetitions = 0  # repeated commands of the PLC
        self.resent = 0  # repeated commands of the line
        self.heard = 0  # valid messages of the PLC
        self.other_version: int | None = None  # the version of a PLC that speaks another one
        self._connection = connection
        self._sequence = sequence
        self._beats = 0
        self._peer: int | None = None  # the connection number of the PLC
        self._seen: OrderedDict[int, Ack] = OrderedDict()  # sequence number -> answer, of the PLC's last commands
        self._waiting: deque[_Command] = deque()
        self._sent: dict[int, _Command] = {}
        self._out = bytearray()

    def command(self, type: Type, code: int, part: int, value: int = 0, time: int = 0,
                expires: float = float("inf")) -> None:
        """Queue a command; it is not sent after ``expires``.

        A verdict replaces an earlier one on the same part that is not acknowledged yet.
        """
        if type is Type.VERDICT:
            for earlier in [c for c in self._waiting if c.part == part and c.type is type]:
                self._waiting.remove(earlier)
            for sequence in [s for s, c in self._sent.items() if c.part == part and c.type is type]:
                del self._sent[sequence]
        command = _Command(type, code, part, value, time, expires)
        if type is Type.REJECT:
            self._waiting.appendleft(command)  # a REJECT must not wait behind verdicts
        else:
            self._waiting.append(command)

    def heartbeat(self, status: int) -> None:
        """Queue a heartbeat."""
        self._send(Message(Type.LINE_HEARTBEAT, status, self._connection, 0, 0, self._beats))
        self._beats = (self._beats + 1) & 0x7FFFFFFF

    def _send(self, message: Message) -> None:
        self._out += message.encode()

    def received(self, data: bytes, room: int) -> tuple[list[tuple[Message, Ack]], list[Settled]]:
        """Read ``data``. Returns the PLC's heartbeats and *new* commands with our answers, and how commands of the line
        ended.

        room: how many triggers are accepted. Each further TRIGGER is answered with NOT_READY, and returned as well.
        """
        messages: list[tuple[Message, Ack]] = []
        settled: list[Settled] = []
        for message in self.decoder.feed(data):
            if message.type == Type.PLC_HEARTBEAT:
                self.other_version = None if message.version == VERSION else message.version
            if self.other_version is not None:
                self.decoder.counts["other_version"] += 1
                continue
            self.heard += 1
            if message.connection != self._peer:
                self._peer = message.connection
                self._seen.clear()
            if message.type == Type.PLC_ACK:
                command = self._sent.get(message.sequence)
                # otherwise it answers a command of an earlier connection
                if command is not None and command.part == message.part:
                    del self._sent[message.sequence]
                    settled.append(Settled(command.type, command.part, Ack(message.code)))
            elif message.type == Type.PLC_HEARTBEAT:
                messages.append((message, Ack.DONE))
            else:
                if message.sequence in self._seen:
                    self.repetitions += 1
                else:
                    answer = Ack.DONE
                    if message.type == Type.TRIGGER:
                        answer = Ack.DONE if room > 0 else Ack.NOT_READY
                        room -= 1
                    self._seen[message.sequence] = answer
                    if len(self._seen) > REMEMBERED:
                        self._seen.popitem(last=False)
                    messages.append((message, answer))
                self._send(Message(Type.LINE_ACK, self._seen[message.sequence], self._connection, message.sequence,
                                   message.part))
        return messages, settled

    def poll(self, now: float) -> tuple[bytes, list[Settled]]:
        """The bytes to send now, and the commands that were given up."""
        given_up = []
        for sequence, command in [(s, c) for s, c in self._sent.items() if now - c.sent >= RETRY_AFTER]:
            if command.tries >= TRIES or now > command.expires:
                del self._sent[sequence]
                given_up.append(Settled(command.type, command.part, None))
            else:
                self.resent += 1
                self._send_command(command, now)
        while self._waiting and len(self._sent) < WINDOW:
            command = self._waiting.popleft()
            if now > command.expires:
                given_up.append(Settled(command.type, command.part, None))
                continue
            command.sequence = self._sequence
            self._sequence = (self._sequence + 1) & 0xFFFF
            self._sent[command.sequence] = command
            self._send_command(command, now)
        data = bytes(self._out)
        self._out.clear()
        return data, given_up

    def _send_command(self, command: _Command, now: float) -> None:
        command.sent = now
        command.tries += 1
        self._send(Message(command.type, command.code, self._connection, command.sequence, command.part, command.value,
                           command.time))

    def next_retry(self) -> float | None:
        """When `poll` next repeats a command; None if every command was acknowledged."""
        return min((command.sent + RETRY_AFTER for command in self._sent.values()), default=None)

    @property
    def idle(self) -> bool:
        """Whether every command has ended and nothing waits to be sent."""
        return not self._waiting and not self._sent and not self._out

    def abandon(self) -> list[Settled]:
        """Give up all commands, since the port is gone."""
        lost = [Settled(c.type, c.part, None) for c in [*self._sent.values(), *self._waiting]]
        self._sent.clear()
        self._waiting.clear()
        return lost

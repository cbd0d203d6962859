"""The `frames` protocol without a port: bytes to frames, sequence numbers, acknowledgements. See docs/plc-frames.md."""

from __future__ import annotations

import struct
import zlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

SYNC = b"LS"
LENGTH = 24
BODY = struct.Struct(">2sBBHHIiI")
CRC = struct.Struct(">I")
RETRY_AFTER = 0.020  # s
TRIES = 11  # the first sending and 10 repetitions
WINDOW = 32  # commands under way
REMEMBERED = 128  # sequence numbers


class Type(IntEnum):
    """Frame types; those below 0x80 come from the PLC."""

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
    """What became of a command."""

    DONE = 0
    NOT_READY = 1
    TOO_LATE = 2
    UNKNOWN_PART = 3


# The highest valid code of each type.
PLC_CODES: dict[int, int] = {Type.PLC_HEARTBEAT: 3, Type.TRIGGER: 1, Type.CONFIRM: 0, Type.PLC_ACK: 3, Type.CLEAR: 0}


class Frame(NamedTuple):
    """One frame of 24 bytes. part: unsigned 32 bit; value: signed 32 bit; time: unsigned 32 bit, ms of the PLC's clock."""

    type: int
    code: int
    session: int
    sequence: int
    part: int = 0
    value: int = 0
    time: int = 0

    def encode(self) -> bytes:
        """The frame's 24 bytes."""
        body = BODY.pack(SYNC, *self)
        return body + CRC.pack(zlib.crc32(body))


    @staticmethod
    def decode(data: bytes) -> Frame:
        """The frame of 24 bytes that are known to be one."""
        return Frame(*BODY.unpack(data[:BODY.size])[1:])


class Decoder:
    """Bytes from the PLC to frames. Garbage is dropped byte by byte, and no good frame behind it is lost."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # garbage_bytes, crc_errors, unknown_frames
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with ``data``."""
        self._buffer += data
        frames = []
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
            frame = Frame._make(BODY.unpack(body)[1:])
            if frame.code > PLC_CODES.get(frame.type, -1):
                self.counts["unknown_frames"] += 1
                self.counts["garbage_bytes"] += 1
                position += 1
                continue
            frames.append(frame)
            position += LENGTH
        del self._buffer[:position]
        return frames


class PlcClock:
    """Where the PLC's clock (ms, wraps at 2^32) stands against ours (s of ``time.monotonic``).

    A frame can only be held up on its way, by this machine or the other; so the shortest way seen is the truest. The estimate
    may grow again by 200 ppm, which is more than two quartzes differ by.
    """

    DRIFT = 2e-4

    def __init__(self) -> None:
        self._reference: int | None = None
        self._offset = 0.0
        self._heard = 0.0

    def heard(self, time: int, now: float) -> None:
        """A frame with this time arrived at ``now``; it speaks of a moment that was not later."""
        if self._reference is None:
            self._reference, self._offset = time, now
        else:
            self._offset = min(now - self._since_reference(time), self._offset + self.DRIFT * (now - self._heard))
        self._heard = now

    def _since_reference(self, time: int) -> float:
        assert self._reference is not None
        return ((time - self._reference + 0x80000000) % 0x100000000 - 0x80000000) / 1000

    def moment(self, time: int) -> float:
        """The PLC's time as a moment of our clock, s."""
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
    """A command's end: acknowledged with ``ack``, or never (None)."""

    type: Type
    part: int
    ack: Ack | None


class Conversation:
    """One session of the line's side: numbers and repeats its commands, acknowledges the PLC's and drops their repetitions.

    Pure: it takes bytes and times in and gives bytes out.
    """

    def __init__(self, session: int, sequence: int = 0) -> None:
        """session, sequence: 16-bit numbers, drawn anew for each opening of the port."""
        self.decoder = Decoder()
        self.repetitions = 0  # commands of the PLC that came again
        self.resent = 0
        self.heard = 0  # valid frames of the PLC
        self._session = session
        self._sequence = sequence
        self._beats = 0
        self._peer: int | None = None
        self._seen: OrderedDict[int, Ack] = OrderedDict()
        self._waiting: deque[_Command] = deque()
        self._under_way: dict[int, _Command] = {}
        self._out = bytearray()

    def command(self, type: Type, code: int, part: int, value: int = 0, time: int = 0, expires: float = float("inf")) -> None:
        """Queue a command; after ``expires`` it is not sent any more.

        A verdict takes the place of an earlier one on the same part that is not acknowledged yet.
        """
        if type is Type.VERDICT:
            for earlier in [c for c in self._waiting if c.part == part and c.type is type]:
                self._waiting.remove(earlier)
            for sequence in [s for s, c in self._under_way.items() if c.part == part and c.type is type]:
                del self._under_way[sequence]
        command = _Command(type, code, part, value, time, expires)
        if type is Type.REJECT:
            self._waiting.appendleft(command)  # the one command that must not wait
        else:
            self._waiting.append(command)

    def heartbeat(self, status: int) -> None:
        """Queue a heartbeat."""
        self._send(Frame(Type.LINE_HEARTBEAT, status, self._session, 0, 0, self._beats))
        self._beats = (self._beats + 1) & 0x7FFFFFFF

    def _send(self, frame: Frame) -> None:
        self._out += frame.encode()

    def received(self, data: bytes, room: int) -> tuple[list[tuple[Frame, Ack]], list[Settled]]:
        """The PLC's heartbeats and *new* commands among ``data`` with their answers, and the ends of the line's own commands.

        room: how many triggers are taken; each further TRIGGER is answered NOT_READY, and still handed out.
        """
        frames: list[tuple[Frame, Ack]] = []
        settled: list[Settled] = []
        for frame in self.decoder.feed(data):
            self.heard += 1
            if frame.session != self._peer:
                self._peer = frame.session
                self._seen.clear()
            if frame.type == Type.PLC_ACK:
                command = self._under_way.get(frame.sequence)
                if command is not None and command.part == frame.part:  # else it is for a command of an earlier session
                    del self._under_way[frame.sequence]
                    settled.append(Settled(command.type, command.part, Ack(frame.code)))
            elif frame.type == Type.PLC_HEARTBEAT:
                frames.append((frame, Ack.DONE))
            else:
                if frame.sequence in self._seen:
                    self.repetitions += 1
                else:
                    answer = Ack.DONE
                    if frame.type == Type.TRIGGER:
                        answer = Ack.DONE if room > 0 else Ack.NOT_READY
                        room -= 1
                    self._seen[frame.sequence] = answer
                    if len(self._seen) > REMEMBERED:
                        self._seen.popitem(last=False)
                    frames.append((frame, answer))
                self._send(Frame(Type.LINE_ACK, self._seen[frame.sequence], self._session, frame.sequence, frame.part))
        return frames, settled

    def poll(self, now: float) -> tuple[bytes, list[Settled]]:
        """The bytes to send now, and the commands that are given up."""
        given_up = []
        for sequence, command in [(s, c) for s, c in self._under_way.items() if now - c.sent >= RETRY_AFTER]:
            if command.tries >= TRIES or now > command.expires:
                del self._under_way[sequence]
                given_up.append(Settled(command.type, command.part, None))
            else:
                self.resent += 1
                self._send_command(command, now)
        while self._waiting and len(self._under_way) < WINDOW:
            command = self._waiting.popleft()
            if now > command.expires:
                given_up.append(Settled(command.type, command.part, None))
                continue
            command.sequence = self._sequence
            self._sequence = (self._sequence + 1) & 0xFFFF
            self._under_way[command.sequence] = command
            self._send_command(command, now)
        data = bytes(self._out)
        self._out.clear()
        return data, given_up

    def _send_command(self, command: _Command, now: float) -> None:
        command.sent = now
        command.tries += 1
        self._send(Frame(command.type, command.code, self._session, command.sequence, command.part, command.value, command.time))

    def next_retry(self) -> float | None:
        """When `poll` has something to send again; None while nothing is under way."""
        return min((command.sent + RETRY_AFTER for command in self._under_way.values()), default=None)

    @property
    def idle(self) -> bool:
        """Whether every command is settled, and nothing waits to be sent."""
        return not self._waiting and not self._under_way and not self._out

    def abandon(self) -> list[Settled]:
        """Give up all commands, as when the port is gone."""
        lost = [Settled(c.type, c.part, None) for c in [*self._under_way.values(), *self._waiting]]
        self._under_way.clear()
        self._waiting.clear()
        return lost

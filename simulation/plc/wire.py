"""The PLC's end of the `frames` protocol: codec, resynchronising reader, and the receiving and sending side of
commands.

Written from docs/plc-frames.md alone. It imports nothing from ``edge.plc`` on purpose: two implementations that share
only the document test the document. Nothing here reads a clock; times are seconds, given by the caller.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

SYNC = b"LS"
SIZE = 24  # bytes
RETRY_S = 0.020
REPEATS = 10  # repetitions of a command, after the first time
UNDER_WAY = 32  # commands that wait for their acknowledgement, at most
REMEMBERED = 128  # newest sequence numbers, by which repetitions are recognised
GAP_S = (REPEATS + 1) * RETRY_S + 0.1  # after this a missing number will not come any more

_BODY = struct.Struct(">2sBBHHIiI")
_CRC = struct.Struct(">I")


class Kind(IntEnum):
    """Frame types of both directions."""

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


FROM_PLC = frozenset({Kind.PLC_HEARTBEAT, Kind.TRIGGER, Kind.CONFIRM, Kind.PLC_ACK, Kind.CLEAR})
FROM_LINE = frozenset(Kind) - FROM_PLC
COMMANDS = frozenset({Kind.TRIGGER, Kind.CONFIRM, Kind.CLEAR, Kind.VERDICT, Kind.REJECT, Kind.FAULT})
CODES: dict[Kind, range] = {
    Kind.PLC_HEARTBEAT: range(4), Kind.TRIGGER: range(2), Kind.CONFIRM: range(1), Kind.PLC_ACK: range(4),
    Kind.CLEAR: range(1), Kind.LINE_HEARTBEAT: range(5), Kind.VERDICT: range(4), Kind.REJECT: range(2),
    Kind.FAULT: range(8), Kind.LINE_ACK: range(4),
}
STATES = ("offline", "starting", "ready", "degraded", "fault")  # by code of LINE_HEARTBEAT
VERDICTS = ("pass", "reject", "uninspected_eject", "uninspected_release")  # by code of VERDICT


class Ack(IntEnum):
    """Codes of an acknowledgement."""

    DONE = 0
    NOT_READY = 1
    TOO_LATE = 2
    UNKNOWN_PART = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    ``session``, ``sequence``: 16 bit; ``part``: unsigned 32 bit; ``value``: signed 32 bit; ``time``: unsigned 32 bit,
    ms.
    """

    kind: Kind
    code: int = 0
    session: int = 0
    sequence: int = 0
    part: int = 0
    value: int = 0
    time: int = 0

    def encode(self) -> bytes:
        """The 24 bytes on the wire. Raises ``struct.error`` if a field does not fit its size."""
        body = _BODY.pack(SYNC, self.kind, self.code, self.session, self.sequence, self.part, self.value, self.time)
        return body + _CRC.pack(crc32(body))


def crc32(data: bytes) -> int:
    """CRC-32 of IEEE 802.3; ``crc32(b"123456789") == 0xCBF43926``."""
    return zlib.crc32(data)


class Reader:
    """Finds frames in a stream of bytes; ``accepted`` are the types of the other side.

    Counts ``crc_errors`` (a sync word with a wrong CRC), ``unknown_frames`` (a right CRC, but a type or code that the
    other side does not have), ``garbage_bytes`` (bytes that were dropped) and ``resynchronisations`` (runs of dropped
    bytes).
    """

    def __init__(self, accepted: frozenset[Kind] = FROM_LINE) -> None:
        self.crc_errors = self.unknown_frames = self.garbage_bytes = self.resynchronisations = 0
        self._accepted = accepted
        self._buffer = bytearray()
        self._dropping = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes, in order. At most 23 bytes are kept for the next call."""
        buffer, at, frames = self._buffer, 0, []
        buffer += data
        while len(buffer) - at >= SIZE:
            frame = self._frame(bytes(buffer[at : at + SIZE]))
            if frame is None:
                self.garbage_bytes += 1
                self.resynchronisations += not self._dropping
            else:
                frames.append(frame)
            self._dropping = frame is None
            at += SIZE if frame else 1
        del buffer[:at]
        return frames

    def _frame(self, block: bytes) -> Frame | None:
        if block[:2] != SYNC:
            return None
        if crc32(block[:20]) != _CRC.unpack_from(block, 20)[0]:
            self.crc_errors += 1
            return None
        _, kind, code, session, sequence, part, value, time = _BODY.unpack_from(block)
        if kind not in self._accepted or code not in CODES[Kind(kind)]:
            self.unknown_frames += 1
            return None
        return Frame(Kind(kind), code, session, sequence, part, value, time)


class Inbox:
    """Commands of the other side: which are repetitions, and whether their numbers follow the rule.

    ``sequence_errors`` counts numbers that never came, jumps of more than 128 and numbers that went back; ``reordered``
    counts numbers that came after a higher one (a repetition of a lost frame does that); ``repeated`` counts
    repetitions; ``sessions`` counts the sessions seen.
    """

    def __init__(self) -> None:
        self.sequence_errors = self.reordered = self.repeated = self.sessions = 0
        self.session: int | None = None
        self._codes: dict[int, int] = {}  # sequence -> code of its acknowledgement, oldest first
        self._newest: int | None = None
        self._gaps: dict[int, float] = {}  # missing number -> when that was noticed

    def begins(self, frame: Frame, now: float) -> bool:
        """Whether ``frame`` (of any type) is the first of a new session; if so, all numbers are forgotten."""
        if frame.session == self.session:
            return False
        self.settle(now)
        self.session = frame.session
        self.sessions += 1
        self._codes.clear()
        self._gaps.clear()
        self._newest = None
        return True

    def repetition(self, frame: Frame) -> int | None:
        """The code of the first acknowledgement if ``frame`` was seen before, otherwise None."""
        code = self._codes.get(frame.sequence)
        self.repeated += code is not None
        return code

    def remember(self, frame: Frame, code: int, now: float) -> None:
        """``frame`` is a command that was carried out and is acknowledged with ``code``."""
        self._codes[frame.sequence] = code
        if len(self._codes) > REMEMBERED:
            del self._codes[next(iter(self._codes))]
        self.settle(now)
        if self._newest is None:
            self._newest = frame.sequence
            return
        step = (frame.sequence - self._newest + 0x8000) % 0x10000 - 0x8000
        if 0 < step <= REMEMBERED:
            self._gaps.update(((self._newest + n) % 0x10000, now) for n in range(1, step))
            self._newest = frame.sequence
        elif self._gaps.pop(frame.sequence, None) is not None:
            self.reordered += 1
        else:
            self.sequence_errors += 1
            if abs(step) > REMEMBERED:
                self._newest = frame.sequence

    def settle(self, now: float) -> None:
        """Count the numbers that have been missing so long that they will not come any more."""
        for sequence in [s for s, since in self._gaps.items() if now - since > GAP_S]:
            del self._gaps[sequence]
            self.sequence_errors += 1


@dataclass(slots=True)
class _UnderWay:
    frame: Frame
    due: float
    sends: int = 0


class Outbox:
    """Commands of this side: repeated every 20 ms until acknowledged, 10 times at most; 32 at most are under way.

    ``sequence``: the number of the first command. ``resent`` counts repetitions, ``stray_acks`` acknowledgements
    of commands that are not under way: the second one of a repeated command, or one for an earlier session.
    """

    def __init__(self, sequence: int = 0) -> None:
        self.resent = self.stray_acks = 0
        self._next = sequence
        self._queue: deque[Frame] = deque()
        self._under_way: dict[int, _UnderWay] = {}

    def __len__(self) -> int:
        return len(self._queue) + len(self._under_way)

    def post(self, kind: Kind, *, code: int = 0, part: int = 0, value: int = 0, time: int = 0) -> None:
        """Give a command its number and queue it; ``due`` hands it out."""
        self._queue.append(Frame(kind, code, 0, self._next, part, value, time))
        self._next = (self._next + 1) % 0x10000

    def next_due(self) -> float:
        """When ``due`` has something to do, s; infinity if never."""
        if self._queue and len(self._under_way) < UNDER_WAY:
            return float("-inf")
        return min((c.due for c in self._under_way.values()), default=float("inf"))

    def due(self, now: float) -> tuple[list[Frame], list[Frame]]:
        """(frames to send now, commands given up now). The sender fills in its session."""
        send: list[Frame] = []
        lost = [c for c in self._under_way.values() if c.due <= now and c.sends > REPEATS]
        for command in lost:
            del self._under_way[command.frame.sequence]
        while self._queue and len(self._under_way) < UNDER_WAY:
            frame = self._queue.popleft()
            self._under_way[frame.sequence] = _UnderWay(frame, now)
        for command in self._under_way.values():
            if command.due <= now:
                self.resent += command.sends > 0
                command.sends += 1
                command.due = now + RETRY_S
                send.append(command.frame)
        return send, [c.frame for c in lost]

    def acknowledged(self, ack: Frame) -> Frame | None:
        """The command that ``ack`` settles, or None.

        The part must agree as well: the number alone could be another session's.
        """
        command = self._under_way.get(ack.sequence)
        if command is None or command.frame.part != ack.part:
            self.stray_acks += 1
            return None
        del self._under_way[ack.sequence]
        return command.frame

"""The parts on the belt and the ledger in a memory-mapped file, so that a line control that was killed knows them when it starts again.

Each record holds a part *and* the ledger as it was then, and is written twice, with a checksum: whatever moment a kill comes at, one
record is whole. Records are written before their actions are carried out.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path

from edge.base.errors import InputError
from edge.line_control.parts import COUNTS, BeltPart, Ledger, counts_of
from edge.part.events import Ended
from edge.part.verdict import Cause, Verdict

MAGIC = b"lineside belt 4\n"
SLOTS = 4096  # parts on the belt, or not in the journal yet; beyond that the oldest are overwritten
HEADER = struct.Struct("<16s16sd")  # magic, session, what to add to the line's clock for the wall's
CAUSES = list(Cause)
VERDICTS = list(Verdict)
# Number of the record, trigger, id, encoder, target; triggered, due, score, ended; verdict, cause, flags.
PART = struct.Struct("<QQIiiddddBBH")
LEDGER = struct.Struct(f"<{len(COUNTS) + len(CAUSES) + 1}I")  # the counts; the causes; a bit for each fault that a person has to clear
COUNTED, BY_CAUSE, LATCHED = struct.Struct(f"<{len(COUNTS)}I"), struct.Struct(f"<{len(CAUSES)}I"), struct.Struct("<I")
CRC = struct.Struct("<I")
CAUSE_NAMES = [cause.value for cause in Cause]
FLAGS = ("ended", "to_eject", "ordered", "held", "confirmed", "arrived", "gone")
BITS = [1 << bit for bit in range(len(FLAGS))]
flags_of, cause_counts = attrgetter(*FLAGS), itemgetter(*CAUSE_NAMES)
NUMBERS: dict[Verdict | Cause | None, int] = {
    None: 0, **{verdict: number for number, verdict in enumerate(VERDICTS, 1)}, **{cause: number for number, cause in enumerate(CAUSES, 1)}}
ENCODER, TARGET, WRITTEN = (1 << len(FLAGS) + bit for bit in range(3))
COPY = PART.size + LEDGER.size + CRC.size
SIZE = HEADER.size + (SLOTS + 1) * 2 * COPY


@dataclass
class Left:
    """What a file held. parts: still on the belt; unwritten: with an outcome that the journal does not have; latched: fault codes."""

    session: str
    clock: float
    ledger: Ledger
    parts: list[BeltPart]
    unwritten: list[BeltPart]
    latched: set[int]


class BeltFile:
    """The file of one line. Used by line control alone."""

    def __init__(self, path: Path, session: str, wall_clock: Callable[[], float] = time.time) -> None:
        """session: 16 hexadecimal digits, of one run of a line and its restarts. ``left`` is what was there. Raises InputError."""
        self.path, self.wall_clock = path, wall_clock
        self.latched: set[int] = set()  # faults that a person has to clear, kept with each record
        self._number = 0
        self._uninspected, self._causes = -1, b""  # the causes of so many parts, packed
        self._written: set[int] = set()  # outcomes that the journal has, of parts that are still on the belt
        self._on_belt: dict[int, BeltPart] = {}
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, SIZE)
                self._map = mmap.mmap(descriptor, SIZE)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InputError(f"cannot write {path}, which keeps the parts on the belt", got=error.strerror, expected="a writable folder "
                             "with room", next="Mend `path` under [journal] in the line file.") from error
        self.left = self._read()
        if self.left is None or self.left.session != session:
            self._on_belt.clear()
            self._written.clear()
            self._map[:] = bytes(SIZE)
            self._map[:HEADER.size] = HEADER.pack(MAGIC, session.encode(), wall_clock() - time.monotonic())

    def write(self, changed: list[BeltPart], ledger: Ledger) -> None:
        """Keep what has changed; without a part, the ledger alone."""
        for part in changed:
            self._on_belt[part.trigger] = part
            self._record(part, ledger)
            self._forget(part)
        if not changed:
            self._record(None, ledger)

    def written(self, triggers: list[int], ledger: Ledger) -> None:
        """The journal has these outcomes."""
        for trigger in triggers:
            if (part := self._on_belt.get(trigger)) is not None:
                self._written.add(trigger)
                self._record(part, ledger)
                self._forget(part)

    def unwritten(self) -> list[BeltPart]:
        """Parts with an outcome that the journal does not have, in order of their triggers."""
        return [part for trigger, part in sorted(self._on_belt.items()) if part.ended and trigger not in self._written]

    def _forget(self, part: BeltPart) -> None:
        if part.gone and part.trigger in self._written:
            self._written.discard(part.trigger)
            del self._on_belt[part.trigger]

    def _record(self, part: BeltPart | None, ledger: Ledger) -> None:
        self._number += 1
        slot = 0 if part is None else part.trigger % SLOTS + 1
        if part is None:
            body = PART.pack(self._number, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0)
        else:
            flags = sum(itertools.compress(BITS, flags_of(part)))
            flags |= ENCODER * (part.encoder is not None) | TARGET * (part.target is not None) | WRITTEN * (part.trigger in self._written)
            body = PART.pack(
                self._number, part.trigger, part.id, part.encoder or 0, part.target or 0, part.triggered, part.due,
                math.nan if part.score is None else part.score, part.ended_at,
                NUMBERS[part.verdict], NUMBERS[part.cause], flags)
        if ledger.uninspected != self._uninspected:
            self._uninspected, self._causes = ledger.uninspected, BY_CAUSE.pack(*cause_counts(ledger.causes))
        body += COUNTED.pack(*counts_of(ledger)) + self._causes + LATCHED.pack(sum(1 << code for code in self.latched))
        body += CRC.pack(zlib.crc32(body))
        start = HEADER.size + slot * 2 * COPY
        self._map[start:start + COPY] = body
        self._map[start + COPY:start + 2 * COPY] = body

    def _records(self) -> Iterator[bytes]:
        for slot in range(SLOTS + 1):
            start = HEADER.size + slot * 2 * COPY
            for copy in (start, start + COPY):
                body = self._map[copy:copy + COPY]
                if any(body) and zlib.crc32(body[:-CRC.size]) == CRC.unpack(body[-CRC.size:])[0]:
                    yield body
                    break

    def _read(self) -> Left | None:
        magic, session, clock = HEADER.unpack(self._map[:HEADER.size])
        if magic != MAGIC:
            return None
        left, newest = Left(session.decode(), clock, Ledger(), [], [], set()), None
        for body in self._records():
            number, trigger, id, encoder, target, triggered, due, score, ended_at, verdict, cause, flags = PART.unpack_from(body)
            if number > self._number:
                self._number, newest = number, CAUSES[cause - 1].value if cause else None
                counts = LEDGER.unpack_from(body, PART.size)
                left.latched = {code for code in range(32) if counts[-1] >> code & 1}
                left.ledger = Ledger(**dict(zip(COUNTS, counts, strict=False)), causes=Counter(
                    {cause.value: count for cause, count in zip(CAUSES, counts[len(COUNTS):-1], strict=True) if count}))
            if not trigger:
                continue
            part = BeltPart(id, trigger, encoder if flags & ENCODER else None, triggered, due,
                            VERDICTS[verdict - 1] if verdict else None, CAUSES[cause - 1] if cause else None,
                            None if math.isnan(score) else score, ended_at=ended_at, target=target if flags & TARGET else None)
            for bit, name in enumerate(FLAGS):
                setattr(part, name, bool(flags & 1 << bit))
            if part.gone and flags & WRITTEN:
                continue
            self._on_belt[trigger] = part
            if flags & WRITTEN:
                self._written.add(trigger)
            if not part.gone:
                left.parts.append(part)
            if part.ended and not flags & WRITTEN:
                left.unwritten.append(part)
        # An event that ends several parts makes them all UNINSPECTED, and counts them before the last record is written.
        ledger, open_parts = left.ledger, sum(not part.ended for part in left.parts)
        early = open_parts - (ledger.triggers - ledger.passed - ledger.rejected - ledger.uninspected)
        if early > 0 and newest is not None:
            ledger.uninspected -= early
            ledger.causes[newest] -= early
        return left

    def close(self) -> None:
        """Close the file, and remove it if nothing of it will be asked for."""
        self._map.close()
        if not self.unwritten() and all(part.gone or part.ended for part in self._on_belt.values()):
            self.path.unlink(missing_ok=True)


def left_over(left: Left, wall_clock: Callable[[], float] = time.time) -> list[Ended]:
    """The outcomes of an earlier run that no journal has: its parts that had none are UNINSPECTED(restart)."""
    shift = left.clock - (wall_clock() - time.monotonic())  # 0, but for a machine that was started again
    found = {part.trigger: part for part in [*left.parts, *left.unwritten] if not part.ended or part in left.unwritten}
    outcomes = []
    for trigger, part in sorted(found.items()):
        verdict, cause, score, ended_at = part.verdict, part.cause, part.score, part.ended_at + shift
        if verdict is None or not part.ended:
            verdict, cause, score, ended_at = Verdict.UNINSPECTED, Cause.RESTART, None, time.monotonic()
        outcomes.append(Ended(part.id, verdict, cause, score, part.encoder, part.triggered + shift, ended_at, trigger, left.session))
    return outcomes

"""The belt file: the parts on the belt and the ledger in a memory-mapped file, which a restarted line control reads.

Each record holds one part *and* the ledger at that moment. It is written twice, each copy with a checksum, so at
whatever moment the process is killed, one copy is whole. A record is written before line control acts on it.
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

# the number is the version of the file; a file of another version is renamed, never overwritten
MAGIC = b"lineside belt 4\n"
SLOTS = 4096  # parts on the belt or not in the journal yet; with more, the oldest are overwritten
HEADER = struct.Struct("<16s16sd")  # magic, run id, wall clock minus monotonic clock (s)
CAUSES = list(Cause)
VERDICTS = list(Verdict)
# Number of the record, trigger, id, encoder, target; triggered, due, score, ended_at; verdict, cause, flags.
PART = struct.Struct("<QQIiiddddBBH")
LEDGER = struct.Struct(f"<{len(COUNTS) + len(CAUSES) + 1}I")  # the counts; the causes; one bit for each latched fault
COUNTED, BY_CAUSE, LATCHED = struct.Struct(f"<{len(COUNTS)}I"), struct.Struct(f"<{len(CAUSES)}I"), struct.Struct("<I")
CRC = struct.Struct("<I")
CAUSE_NAMES = [cause.value for cause in Cause]
FLAGS = ("ended", "to_eject", "ordered", "held", "confirmed", "arrived", "gone")
BITS = [1 << bit for bit in range(len(FLAGS))]
flags_of, cause_counts = attrgetter(*FLAGS), itemgetter(*CAUSE_NAMES)
NUMBERS: dict[Verdict | Cause | None, int] = {
    None: 0, **{verdict: number for number, verdict in enumerate(VERDICTS, 1)},
    **{cause: number for number, cause in enumerate(CAUSES, 1)}}
ENCODER, TARGET, WRITTEN = (1 << len(FLAGS) + bit for bit in range(3))
COPY = PART.size + LEDGER.size + CRC.size
SIZE = HEADER.size + (SLOTS + 1) * 2 * COPY  # slot 0 holds records of the ledger alone


@dataclass
class SavedBelt:
    """The content of a belt file.

    unwritten: parts whose outcome is not in the journal. latched: codes of latched faults.
    """

    run_id: str
    clock: float  # wall clock minus monotonic clock, s
    ledger: Ledger
    parts: list[BeltPart]  # on the belt
    unwritten: list[BeltPart]
    latched: set[int]


class BeltFile:
    """The file of one line. Only line control uses it."""

    def __init__(self, path: Path, run_id: str, wall_clock: Callable[[], float] = time.time) -> None:
        """run_id: 16 hexadecimal digits that name one run of the line, including its restarts. wall_clock: s since
        1970.

        ``saved`` is what the file held, None for a new file. A file of another version, or that is no belt file, is
        renamed first; ``set_aside`` is its new name. Raises InputError when the file cannot be written.
        """
        self.path, self.wall_clock = path, wall_clock
        self.latched: set[int] = set()  # faults that stop the line until a person clears them; stored with each record
        self._number = 0
        self._uninspected, self._causes = -1, b""  # the packed causes, valid for this many uninspected parts
        self._written: set[int] = set()  # triggers whose outcome is in the journal
        self._on_belt: dict[int, BeltPart] = {}
        try:
            self.set_aside = _set_aside_other_version(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, SIZE)
                self._map = mmap.mmap(descriptor, SIZE)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InputError(f"cannot write {path}, which keeps the parts on the belt", got=error.strerror,
                             expected="a writable folder with enough room",
                             next="Fix `path` under [journal] in the line file.") from error
        self.saved = self._read()
        if self.saved is None or self.saved.run_id != run_id:
            self._on_belt.clear()
            self._written.clear()
            self._map[:] = bytes(SIZE)
            self._map[:HEADER.size] = HEADER.pack(MAGIC, run_id.encode(), wall_clock() - time.monotonic())

    def write(self, changed: list[BeltPart], ledger: Ledger) -> None:
        """Save parts that have changed, with the ledger; without a part, the ledger alone."""
        for part in changed:
            self._on_belt[part.trigger] = part
            self._record(part, ledger)
            self._forget(part)
        if not changed:
            self._record(None, ledger)

    def mark_written(self, triggers: list[int], ledger: Ledger) -> None:
        """Save that the outcomes of these triggers are in the journal."""
        for trigger in triggers:
            if (part := self._on_belt.get(trigger)) is not None:
                self._written.add(trigger)
                self._record(part, ledger)
                self._forget(part)

    def unwritten(self) -> list[BeltPart]:
        """The parts whose outcome is not in the journal, in order of their triggers."""
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
            flags |= ENCODER * (part.encoder is not None) | TARGET * (part.target is not None)
            flags |= WRITTEN * (part.trigger in self._written)
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

    def _read(self) -> SavedBelt | None:
        magic, run_id, clock = HEADER.unpack(self._map[:HEADER.size])
        if magic != MAGIC:
            return None
        saved, newest = SavedBelt(run_id.decode(), clock, Ledger(), [], [], set()), None
        for body in self._records():
            (number, trigger, id, encoder, target, triggered, due, score, ended_at, verdict, cause,
             flags) = PART.unpack_from(body)
            if number > self._number:
                self._number, newest = number, CAUSES[cause - 1].value if cause else None
                counts = LEDGER.unpack_from(body, PART.size)
                saved.latched = {code for code in range(32) if counts[-1] >> code & 1}
                saved.ledger = Ledger(**dict(zip(COUNTS, counts, strict=False)), causes=Counter(
                    {cause.value: count for cause, count in zip(CAUSES, counts[len(COUNTS):-1], strict=True) if count}))
            if not trigger:
                continue
            part = BeltPart(id, trigger, encoder if flags & ENCODER else None, triggered, due,
                            VERDICTS[verdict - 1] if verdict else None, CAUSES[cause - 1] if cause else None,
                            None if math.isnan(score) else score, ended_at=ended_at,
                            target=target if flags & TARGET else None)
            for bit, name in enumerate(FLAGS):
                setattr(part, name, bool(flags & 1 << bit))
            if part.gone and flags & WRITTEN:
                continue
            self._on_belt[trigger] = part
            if flags & WRITTEN:
                self._written.add(trigger)
            if not part.gone:
                saved.parts.append(part)
            if part.ended and not flags & WRITTEN:
                saved.unwritten.append(part)
        # An event that ends several parts counts them all as UNINSPECTED before the last of their records is written.
        ledger, open_parts = saved.ledger, sum(not part.ended for part in saved.parts)
        early = open_parts - (ledger.triggers - ledger.passed - ledger.rejected - ledger.uninspected)
        if early > 0 and newest is not None:
            ledger.uninspected -= early
            ledger.causes[newest] -= early
        return saved

    def close(self) -> None:
        """Close the file. Delete it if every part on it is gone or ended, and every outcome is in the journal."""
        self._map.close()
        if not self.unwritten() and all(part.gone or part.ended for part in self._on_belt.values()):
            self.path.unlink(missing_ok=True)


def _set_aside_other_version(path: Path) -> Path | None:
    """Rename a file that does not begin with MAGIC, and is not empty, to the first free name; returns that.

    Raises OSError.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        return None
    if not start.strip(b"\0") or start == MAGIC:  # zeros: the process was killed before it wrote the header
        return None
    free = next(name for number in itertools.count(1)
                if not (name := path.with_name(f"{path.name}.old{number}")).exists())
    return path.rename(free)


def outcomes_of_earlier_run(saved: SavedBelt, wall_clock: Callable[[], float] = time.time) -> list[Ended]:
    """The outcomes of an earlier run that no journal has. Its parts that had none are UNINSPECTED(restart)."""
    shift = saved.clock - (wall_clock() - time.monotonic())  # 0, unless the machine was rebooted meanwhile
    found = {part.trigger: part for part in [*saved.parts, *saved.unwritten] if not part.ended
             or part in saved.unwritten}
    outcomes = []
    for trigger, part in sorted(found.items()):
        verdict, cause, score, ended_at = part.verdict, part.cause, part.score, part.ended_at + shift
        if verdict is None or not part.ended:
            verdict, cause, score, ended_at = Verdict.UNINSPECTED, Cause.RESTART, None, time.monotonic()
        outcomes.append(Ended(part.id, verdict, cause, score, part.encoder, part.triggered + shift, ended_at, trigger,
                              saved.run_id))
    return outcomes

"""Runs line control from its tape: the same inputs must give the same bytes on the wire and the same outcomes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from edge.base.errors import LinkError
from edge.line_control.belt_file import BeltFile
from edge.line_control.control import LineControl
from edge.line_control.job import ControlJob
from edge.line_control.state import LineState
from edge.part.events import Ended
from edge.part.verdict import Cause, Verdict
from edge.plc.kinds import LINKS, make_link
from edge.plc.tape import DivergedError, ReplayTape, TapeEndedError

Outcome = tuple[Verdict, Cause | None, float | None]
BEGIN = "vbegin "  # the first line of each process's tape


@dataclass
class Played:
    """The result of playing a tape."""

    bytes: int = 0  # written to the wire, the same as recorded
    runs: int = 0  # how often line control was started
    cut: int = 0  # how often it was killed: the tape of such a process has no end
    differs: str | None = None  # the first thing that line control did differently
    ledger: dict[str, Any] = field(default_factory=dict)  # of the last process
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by trigger
    run_ids: set[str] = field(default_factory=set)
    # triggers whose recorded verdict was taken, since there is no other
    unproved: set[int] = field(default_factory=set)


class _Runtime:
    """Stands in for the runtime, and keeps the outcomes."""

    def __init__(self, outcomes: dict[int, Outcome]) -> None:
        self._outcomes = outcomes

    def put(self, message: object, urgent: bool = True) -> None:
        if isinstance(message, Ended):
            self._outcomes[message.trigger] = (message.verdict, message.cause, message.score)

    def receive(self) -> list[Any]:
        raise AssertionError("what the runtime said comes from the tape")

    def fileno(self) -> int:
        return -1

    def wait(self, seconds: float) -> None:
        """A tape waits for nothing."""

    def flush(self, urgent_only: bool = False) -> None:
        """There is nobody to send to."""


class _Lines:
    """The lines of a tape, process by process."""

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        self._file, self._progress = path.open(encoding="ascii", errors="replace"), progress
        self._number, self._ahead = 0, ""
        self._read()

    def _read(self) -> None:
        line = self._file.readline()
        while line == "\n":
            self._number += 1
            line = self._file.readline()
        self._ahead = line.rstrip("\n") if line.endswith("\n") else ""  # a line that was cut off does not count
        self._number += 1
        if self._number % 5000 == 0:
            self._progress(self._file.tell())

    def run(self) -> Iterator[tuple[int, str]]:
        """The numbered lines of the next process."""
        first = True
        while self._ahead and (first or not self._ahead.startswith(BEGIN)):
            first = False
            taken = self._number, self._ahead
            self._read()
            yield taken

    @property
    def more(self) -> bool:
        """Whether another process follows."""
        return bool(self._ahead)

    def close(self) -> None:
        self._file.close()


def play_control(tape: Path, verdicts: dict[int, Outcome], progress: Callable[[int], None] = lambda _: None) -> Played:
    """Play a tape.

    verdicts: this replay's verdicts by trigger, in place of the recorded ones. progress: gets the bytes played so far.
    """
    played = Played()
    lines = _Lines(tape, progress)
    with tempfile.TemporaryDirectory(prefix="lineside-replay-") as name, contextlib.closing(lines):
        while lines.more and played.differs is None:
            played.runs += 1
            run = lines.run()
            replay = ReplayTape(run)
            replay.swap = lambda what, data: _swapped(data, verdicts, played.unproved) if what == "heard" else data
            try:
                _play(replay, Path(name) / "belt", played)
            except Exception as error:
                _failed(replay, error, played)
            if isinstance(replay.stopped, TapeEndedError):
                played.cut += 1
            elif replay.stopped is not None:
                played.differs = str(replay.stopped)
            played.bytes += replay.bytes
            for _ in run:  # skip the rest of a process that did something else
                continue
    return played


def _failed(tape: ReplayTape, error: Exception, played: Played) -> None:
    """Line control raised an error: was it recorded too?"""
    if tape.stopped is not None:
        return
    try:
        tape.take("crashed", str)
        played.cut += 1
    except (DivergedError, TapeEndedError):
        tape.stopped = DivergedError(f"line control fails in the replay: {type(error).__name__}: {error}")


class _Belt(BeltFile):
    """The belt file, which stays behind where a process was killed."""

    def __init__(self, path: Path, session: str, tape: ReplayTape) -> None:
        super().__init__(path, session)
        self._tape = tape

    def close(self) -> None:
        """As a process closes it that ends in order, unless the tape ends before that."""
        if self._tape.stopped is None:
            super().close()
        else:
            self._map.close()


def _play(tape: ReplayTape, belt: Path, played: Played) -> None:
    entry: dict[str, Any] = tape.take("begin", dict)
    job = ControlJob.from_tape(entry, resolve_name(LINKS[entry["plc"]["kind"]]).link, belt)
    link = make_link(job.link, job.options, tape)
    try:
        link.open()
    except LinkError:
        if not job.restarted:
            return
    played.run_ids.add(job.run_id)
    kept = _Belt(job.belt_file, job.run_id, tape)
    why_not = tape.take("why_not", str)
    state = LineState(job.timing, job.parts, run_id=job.run_id, running=False)
    LineControl(link, state, kept, _Runtime(played.outcomes), pulse_ms=job.pulse_ms, realtime=not why_not,
                tape=tape).run()
    played.ledger = state.ledger.as_json()
    recorded: dict[str, Any] = tape.take("ledger", dict)
    if recorded != played.ledger:
        tape.stopped = DivergedError(f"the ledger: recorded {recorded}, now {played.ledger}")


def _swapped(heard: list[Any], verdicts: dict[int, Outcome], unproved: set[int]) -> list[Any]:
    """Put this replay's verdicts into recorded messages."""
    for item in heard:
        if item[0] != "PartVerdict" or item[1]["score"] is None:
            continue
        if (found := verdicts.get(item[1]["trigger"])) is None:
            unproved.add(item[1]["trigger"])
        else:
            item[1].update(verdict=found[0].value, cause=found[1] and found[1].value, score=found[2])
    return heard

"""Line control once more, from its tape: the same inputs have to give the same bytes on the wire and the same outcomes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.base.errors import LinkError
from edge.line_control.belt_file import BeltFile
from edge.line_control.control import LineControl
from edge.line_control.job import ControlJob
from edge.line_control.messages import Welcome
from edge.line_control.state import LineState
from edge.part.events import Ended
from edge.part.verdict import Cause, Verdict
from edge.plc.kinds import make_link
from edge.plc.tape import DivergedError, ReplayTape, TapeEndedError

Outcome = tuple[Verdict, Cause | None, float | None]
BEGIN = "vbegin "


@dataclass
class Played:
    """What came of it. bytes: that went out as they had. differs: where it did something else than what was recorded."""

    bytes: int = 0
    runs: int = 0  # line control was started so often
    cut: int = 0  # runs that were killed: their tape has no end
    differs: str | None = None
    ledger: dict[str, Any] = field(default_factory=dict)  # of the last run
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by trigger
    sessions: set[str] = field(default_factory=set)  # of line control
    unproved: set[int] = field(default_factory=set)  # triggers whose recorded verdict was taken, for want of another


class _Runtime:
    """In place of the runtime: takes the outcomes that it was told."""

    def __init__(self, outcomes: dict[int, Outcome]) -> None:
        self._outcomes = outcomes

    def tell(self, message: object, hurry: bool = True) -> None:
        if isinstance(message, Ended):
            self._outcomes[message.trigger] = (message.verdict, message.cause, message.score)

    def hear(self) -> list[Any]:
        raise AssertionError("a tape is played: nothing is heard")

    def fileno(self) -> int:
        return -1

    def wait(self, seconds: float) -> None:
        """The tape waits for nothing."""

    def flush(self, hurried_only: bool = False) -> None:
        """There is nobody to send to."""


class _Lines:
    """The lines of a tape, run by run."""

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        self._file, self._progress = path.open(encoding="ascii", errors="replace"), progress
        self._number, self._ahead = 0, ""
        self._read()

    def _read(self) -> None:
        line = self._file.readline()
        while line == "\n":
            self._number += 1
            line = self._file.readline()
        self._ahead = line.rstrip("\n") if line.endswith("\n") else ""  # one that was cut off is none
        self._number += 1
        if self._number % 5000 == 0:
            self._progress(self._file.tell())

    def run(self) -> Iterator[tuple[int, str]]:
        """The lines of the next run."""
        first = True
        while self._ahead and (first or not self._ahead.startswith(BEGIN)):
            first = False
            taken = self._number, self._ahead
            self._read()
            yield taken

    @property
    def more(self) -> bool:
        """Whether there is a run more."""
        return bool(self._ahead)

    def close(self) -> None:
        self._file.close()


def play_control(tape: Path, verdicts: dict[int, Outcome], progress: Callable[[int], None] = lambda _: None) -> Played:
    """Play a tape. verdicts: what was found about the parts this time, by trigger, in place of what was recorded.

    ``progress`` is told how many bytes of the tape are played.
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
            for _ in run:  # nothing of a run that differs is taken for the next
                continue
    return played


def _failed(tape: ReplayTape, error: Exception, played: Played) -> None:
    """Line control raised an error of its own: as it was recorded, or not."""
    if tape.stopped is not None:
        return
    try:
        tape.take("crashed", str)
        played.cut += 1
    except (DivergedError, TapeEndedError):
        tape.stopped = DivergedError(f"line control fails now: {type(error).__name__}: {error}")


class _Belt(BeltFile):
    """The belt's file, which stays where a process was killed."""

    def __init__(self, path: Path, session: str, tape: ReplayTape) -> None:
        super().__init__(path, session)
        self._tape = tape

    def close(self) -> None:
        """As of a process that ends, unless the tape has an end before that."""
        if self._tape.stopped is None:
            super().close()
        else:
            self._map.close()


def _play(tape: ReplayTape, belt: Path, played: Played) -> None:
    job = ControlJob.from_tape(tape.take("begin", dict), belt)
    link = make_link(job.plc, tape)
    try:
        link.open()
    except LinkError:
        if not job.restarted:
            return
    played.sessions.add(job.run_id)
    kept = _Belt(job.belt_file, job.run_id, tape)
    why_not = tape.take("why_not", str)
    state = LineState(job.timing, job.parts, session=job.run_id, running=False)
    LineControl(link, state, kept, _Runtime(played.outcomes), pulse_ms=job.pulse_ms,
                welcome=Welcome(job.run_id, not why_not, why_not), tape=tape).run()
    played.ledger = state.ledger.as_json()
    recorded: dict[str, Any] = tape.take("ledger", dict)
    if recorded != played.ledger:
        tape.stopped = DivergedError(f"the ledger: recorded {recorded}, now {played.ledger}")


def _swapped(heard: list[Any], verdicts: dict[int, Outcome], unproved: set[int]) -> list[Any]:
    for item in heard:
        if item[0] != "PartVerdict" or item[1]["score"] is None:
            continue
        if (found := verdicts.get(item[1]["trigger"])) is None:
            unproved.add(item[1]["trigger"])
        else:
            item[1].update(verdict=found[0].value, cause=found[1] and found[1].value, score=found[2])
    return heard

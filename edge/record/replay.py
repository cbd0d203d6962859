"""Replays a recorded session: every frame goes through the engine again, and line control runs from its tape."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.base.errors import InputError
from edge.bundle.bundle import load_bundle
from edge.images.files import read_image
from edge.images.frames import Frame
from edge.inspection.choice import choose
from edge.inspection.inspector import Inspection, Inspector
from edge.inspection.views import View, Views
from edge.line_file import LineFile, read_line_file
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict
from edge.record.replay_control import Outcome, Played, play_control
from edge.record.session import check_format

SHOWN = 24  # differences that are drawn, at most
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Session:
    """A session that was read."""

    folder: Path
    about: dict[str, Any]  # session.json
    line: LineFile
    entries: list[dict[str, Any]]  # of runtime.jsonl
    damaged: int  # lines of runtime.jsonl that cannot be read


@dataclass(frozen=True)
class Difference:
    """A part that the replay decides differently."""

    trigger: int
    part: int
    image: str
    recorded: Outcome
    now: Outcome

    def as_json(self) -> dict[str, Any]:
        """The difference as a dictionary; verdict and score are [recorded, now]."""
        return {"trigger": self.trigger, "part": self.part, "image": self.image,
                "verdict": [self.recorded[0].value, self.now[0].value], "score": [self.recorded[2], self.now[2]]}


@dataclass
class Replay:
    """The result of a replay."""

    session: Session
    bundle: Path | None  # used in place of the recorded ones
    parts: int = 0  # that the runtime gave a verdict
    left_out: int = 0  # taken as recorded: verdicts whose frames are not in the session, lines that cannot be read
    scores_differ: int = 0
    largest_change: float = 0.0  # of any score
    differences: list[Difference] = field(default_factory=list)
    drawn: list[tuple[Difference, Frame, Inspection]] = field(default_factory=list)
    wire: Played | None = None
    outcomes_differ: int | None = None

    @property
    def equal(self) -> bool:
        """Whether verdicts, scores, bytes on the wire and outcomes are as recorded; with another bundle, only verdicts.

        What cannot be compared makes a session unequal, unless the session is known to be incomplete.
        """
        if self.bundle is not None:
            return not self.differences
        about = self.session.about
        compared = not self.left_out or not about["complete"]
        same = not self.differences and not self.scores_differ and not self.outcomes_differ
        wire = self.wire is not None and self.wire.differs is None and self.wire.cut <= about.get("restarts", 0)
        return compared and same and wire

    def as_json(self) -> dict[str, Any]:
        """The figures, and the parts that differ."""
        wire = None if self.wire is None else {
            "bytes": self.wire.bytes, "equal": self.wire.differs is None, "differs": self.wire.differs,
            "runs": self.wire.runs, "cut": self.wire.cut}
        changed = Counter(f"{d.recorded[0].value}->{d.now[0].value}" for d in self.differences
                          if d.recorded[0] is not d.now[0])
        return {"session": str(self.session.folder), "bundle": self.bundle and str(self.bundle), "equal": self.equal,
                "parts": self.parts, "left_out": self.left_out, "complete": bool(self.session.about.get("complete")),
                "verdicts_differ": sum(changed.values()), "scores_differ": self.scores_differ,
                "largest_score_change": self.largest_change, "changed": dict(changed), "wire": wire,
                "outcomes_differ": self.outcomes_differ, "ledger": self.wire.ledger if self.wire else None,
                "differences": [difference.as_json() for difference in self.differences]}


def read_session(folder: Path) -> Session:
    """Read a session. Raises InputError for a folder that is no session, or whose format this version cannot replay."""
    try:
        about = json.loads((folder / "session.json").read_text())
        lines = [line for line in (folder / "runtime.jsonl").read_text().splitlines() if line]
    except (OSError, ValueError) as error:
        raise InputError(f"no session at {folder}", got=str(error), expected="a folder that `lineside record` wrote",
                         next="Record one: lineside record LINE.toml --out SESSION") from error
    known = check_format(folder, about)
    entries = [entry for entry in map(_entry, lines) if entry]
    return Session(folder, known, read_line_file(folder / "line.toml"), entries, len(lines) - len(entries))


def _entry(line: str) -> dict[str, Any]:
    """The entry of a line; empty for a line that was cut off."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) and "what" in entry else {}


def replay(session: Session, bundle: Path | None, *, precision: str | None, backend: str | None,
           progress: Progress) -> Replay:
    """Replay a session.

    bundle: another bundle, to see what it would have decided. precision, backend: as recorded unless given.

    Raises InputError, BundleError or EngineError.
    """
    found = Replay(session, bundle, left_out=session.damaged)
    try:
        _replay(found, precision, backend, progress)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"the session {session.folder} is damaged", got=f"{type(error).__name__}: {error}",
                         expected="what `lineside record` wrote", next="Record it again.") from error
    return found


def _replay(found: Replay, precision: str | None, backend: str | None, progress: Progress) -> None:
    session, bundle = found.session, found.bundle
    recorded, now = _inspect(session, found, precision, backend, progress)
    found.parts = len(recorded)
    for trigger, (was, entry) in recorded.items():
        outcome = now[trigger][0]
        if was != outcome:
            if bundle is None or was[0] is not outcome[0]:
                found.differences.append(Difference(trigger, entry["part"], entry["source"], was, outcome))
            if was[2] is not None and outcome[2] is not None:
                found.scores_differ += was[2] != outcome[2]
                found.largest_change = max(found.largest_change, abs(was[2] - outcome[2]))
    tape = session.folder / "control.log"
    if bundle is None and tape.is_file():
        size = tape.stat().st_size
        found.wire = play_control(tape, {trigger: outcome for trigger, (outcome, _) in now.items()},
                                  lambda done: progress("line control", done, size))
        found.left_out += len(found.wire.unproved)
        ended = {entry["trigger"]: entry for entry in session.entries  # without those left over from an earlier run
                 if entry["what"] == "ended" and entry["session"] in found.wire.run_ids}
        found.outcomes_differ = sum(found.wire.outcomes.get(trigger) != _outcome(entry)
                                    for trigger, entry in ended.items())


def _outcome(entry: dict[str, Any]) -> Outcome:
    return Verdict(entry["verdict"]), entry["cause"] and Cause(entry["cause"]), entry["score"]


Judged = dict[int, tuple[Outcome, dict[str, Any]]]  # by trigger: the outcome, and the entry of the view that decided it


def _inspect(session: Session, found: Replay, precision: str | None, backend: str | None,
             progress: Progress) -> tuple[Judged, Judged]:
    """What was decided about each part when it was recorded, and what is decided now."""
    judged = [entry for entry in session.entries if entry["what"] == "judged"]
    live = {entry["run"]: entry for entry in session.entries if entry["what"] == "live"}
    cameras = len(session.line.camera)
    recorded, now = _Decided(cameras), _Decided(cameras)
    with ExitStack() as stack:
        ready: dict[str, Inspector] = {}
        done = 0
        for entry in session.entries:
            if entry["what"] == "start":  # the runtime was restarted, and forgot the views that it had
                recorded.begin()
                now.begin()
            if entry["what"] != "judged":
                continue
            verdict, cause, score = _outcome(entry)
            was = None if score is None else _without_maps(verdict, score)
            recorded.add(entry, was, cause)
            done += 1
            progress("inspecting", done, len(judged))
            if was is None:
                now.add(entry, None, cause)
            elif entry["file"] is None or not (session.folder / entry["file"]).is_file():
                found.left_out += 1
                now.add(entry, was, cause)
            else:
                inspector, threshold = _ready(session, found.bundle, live[entry["run"]], precision, backend, ready,
                                              stack)
                frame = read_image(session.folder / entry["file"])
                inspection = inspector.inspect(frame, threshold)
                now.add(entry, inspection, None)
                differs = inspection.verdict is not verdict or (found.bundle is None and inspection.score != score)
                if differs and len(found.drawn) < SHOWN:
                    about = Difference(entry["trigger"], entry["part"], entry["source"], (verdict, cause, score),
                                       (inspection.verdict or Verdict.UNINSPECTED, None, inspection.score))
                    found.drawn.append((about, frame, inspection))
    return recorded.parts, now.parts


def _without_maps(verdict: Verdict, score: float) -> Inspection:
    """A recorded inspection: its maps were not kept."""
    none = np.zeros((0, 0), np.float32)
    return Inspection(verdict, score, None, [], none, none, none > 0)


class _Decided:
    """Joins the views of each part, as the line does."""

    def __init__(self, cameras: int) -> None:
        self._cameras = cameras
        self.parts: Judged = {}
        self.begin()

    def begin(self) -> None:
        self._views = Views(self._cameras)
        self._entries: dict[tuple[int, int], dict[str, Any]] = {}

    def add(self, entry: dict[str, Any], inspection: Inspection | None, cause: Cause | None) -> None:
        self._entries[entry["trigger"], entry["camera"]] = entry
        frame = CameraFrame(entry["trigger"], entry["part"], 0, 0.0, None, camera=entry["camera"])
        view = self._views.add(View(frame, inspection, cause))
        if view is not None:
            score = None if view.inspection is None else view.inspection.score
            self.parts[entry["trigger"]] = ((view.verdict, view.cause, score),
                                            self._entries[entry["trigger"], view.frame.camera])


def _ready(session: Session, other: Path | None, live: dict[str, Any], precision: str | None, backend: str | None,
           ready: dict[str, Inspector], stack: ExitStack) -> tuple[Inspector, float]:
    """The engine for a frame, loaded once for each bundle, and its threshold."""
    folder = other or session.folder / live["bundle"]
    if str(folder) not in ready:
        chosen = choose(load_bundle(folder), precision or live["precision"], backend or live["backend"])
        ready[str(folder)] = stack.enter_context(Inspector(
            chosen.bundle, precision=chosen.precision, backend=chosen.backend, threads=live["threads"],
            mode=live["mode"]))
    inspector = ready[str(folder)]
    return inspector, inspector.bundle.calibrated_threshold(inspector.precision, inspector.backend).value

"""The bundle that a line inspects with: loading it, checking it before it goes live, and replacing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edge.base.errors import InputError
from edge.bundle.bundle import Bundle, load_bundle
from edge.engines.engine import Mode, Precision
from edge.images.frames import Frame
from edge.inspection.choice import choose
from edge.inspection.golden import golden_scores, judge_golden
from edge.inspection.inspector import Inspector
from edge.line_file import LineFile, read_line_file
from edge.record.journal import Journal
from edge.record.recorder import NullRecorder

HOLD = 0.040  # s; in throughput mode, how long a result may wait for the next ones while the line is full


class MakeInspector(Protocol):
    """Puts a bundle on an engine: the signature of `Inspector`."""

    def __call__(self, bundle: Bundle, *, precision: Precision, backend: str, threads: int,
                 mode: Mode) -> Inspector:
        """Raises EngineError or BundleError."""


@dataclass(frozen=True)
class Loaded:
    """A bundle that may go live. ``remark``: what the operator should know about it, if anything."""

    inspector: Inspector
    threshold: float
    remark: str | None


class BundleLoader:
    """Loads the bundle that a line file names, in the precision and on the backend that the line was started with."""

    def __init__(self, line: Path, precision: str, backend: str, make_inspector: MakeInspector) -> None:
        """line: the line file; its paths are relative to it. precision, backend: a name, or ``auto``."""
        self._line, self._precision, self._backend, self._make_inspector = line, precision, backend, make_inspector

    def load(self, file: LineFile, last_frame: Frame | None = None) -> Loaded:
        """Load and warm up the bundle, and check it on its golden parts.

        last_frame: a camera frame that it must be able to take.

        Raises BundleError, EngineError or InputError where it must not go live.
        """
        bundle = load_bundle(file.resolve(self._line, file.line.bundle))
        chosen = choose(bundle, self._precision, self._backend)
        inspector = self._make_inspector(bundle, precision=chosen.precision, backend=chosen.backend,
                                         threads=file.line.threads, mode=file.line.mode)
        try:
            inspector.group(inspector.warm_up(), min(HOLD, (file.belt.timing.travel - file.belt.timing.lead) / 4))
            scores = golden_scores(inspector)
            threshold = chosen.threshold
            remark = judge_golden(bundle, scores, threshold)
            if last_frame is not None:
                inspector.check(last_frame)
        except BaseException:
            inspector.close()
            raise
        return Loaded(inspector, threshold, remark)


@dataclass(frozen=True)
class Live:
    """What a frame is inspected with."""

    inspector: Inspector
    threshold: float
    run: int  # the journal's row for this bundle, see `Journal.add_run`; 0: it has none yet


class LiveBundle:
    """The bundle that is live, and the one that a reload has loaded to replace it.

    `reload` runs in a thread of its own. `exchange` is called by the thread that inspects, between two frames.
    """

    _journal: Journal
    _recorder: NullRecorder

    def __init__(self, line: Path, file: LineFile, loader: BundleLoader) -> None:
        """Load the first bundle.

        line, file: the line file and what it says as the line starts. Raises what `BundleLoader.load` raises.
        """
        self.last_frame: Frame | None = None  # the newest frame that was inspected
        self._line, self._file, self._loader = line, file, loader
        loaded = loader.load(file)
        self.remark = loaded.remark
        self.current = Live(loaded.inspector, loaded.threshold, run=0)
        self._next: Live | None = None  # loaded; goes live after the frame that is being inspected

    def begin(self, journal: Journal, recorder: NullRecorder) -> None:
        """Enter the first bundle into the journal and the recording.

        Raises InputError where the journal cannot be written.
        """
        self._journal, self._recorder = journal, recorder
        self.current = self._entered(self._file, self.current)
        journal.start(self.current.run)

    def _entered(self, file: LineFile, live: Live) -> Live:
        inspector, bundle = live.inspector, live.inspector.bundle
        run = self._journal.add_run(file.line.name, bundle.folder, bundle.graph_sha256(inspector.precision),
                                    live.threshold)
        self._recorder.live(run, inspector, live.threshold, file.line.threads, file.line.mode)
        return replace(live, run=run)

    def reload(self, ended: Callable[[], bool]) -> str:
        """Load the line file's bundle again while the line keeps inspecting; it goes live with the next `exchange`.

        ended: whether the line has ended. Returns a message for the operator. Raises LinesideError where the old bundle
        stays live.
        """
        file = read_line_file(self._line)
        for section in ("camera", "plc", "belt", "journal"):
            if getattr(file, section) != getattr(self._file, section):
                raise InputError(f"[{section}] of {self._line} has changed",
                                 expected="only another bundle, threshold or `threads`",
                                 next="Stop the line and start it again.")
        if file.line.name != self._file.line.name:
            raise InputError(f"the line's name in {self._line} has changed", got=file.line.name,
                             expected=self._file.line.name, next="Stop the line and start it again.")
        if self._next is not None:
            raise InputError("the bundle of the reload before this one is not live yet", next="Try again.")
        loaded = self._loader.load(file, self.last_frame)
        try:
            if ended():
                raise InputError("the line has ended meanwhile")
            self._next = self._entered(file, Live(loaded.inspector, loaded.threshold, run=0))
        except BaseException:
            loaded.inspector.close()
            raise
        bundle, precision = loaded.inspector.bundle, loaded.inspector.precision
        text = f"{bundle.folder} is live in {precision}, threshold {loaded.threshold:.6g}"
        return text if loaded.remark is None else f"{text}; {loaded.remark}"

    def exchange(self, finish: Callable[[], None]) -> None:
        """Let a bundle that was loaded go live. finish: ends the inferences that still run on the old one."""
        if self._next is None:
            return
        finish()
        old, self.current, self._next = self.current, self._next, None
        self._journal.switch(self.current.run)
        old.inspector.close()

    def close(self) -> None:
        """Free the engines."""
        self.current.inspector.close()
        if self._next is not None:
            self._next.inspector.close()

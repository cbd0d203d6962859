"""A running line: camera -> prepare -> engine -> post-filter -> verdict -> line control, with the journal on the side."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edge.base.errors import EngineError, EngineLostError, InputError
from edge.bundle.bundle import load_bundle
from edge.cameras.kinds import make_camera
from edge.cameras.matching import KEPT, Matcher
from edge.images.frames import Frame
from edge.inspection.choice import pick_backend
from edge.inspection.golden import golden_scores, judge_golden
from edge.inspection.inspector import Inspector, Job
from edge.inspection.views import View, Views
from edge.line_control.client import ControlClient
from edge.line_file import LineFile, read_line_file
from edge.part.events import Ended, Expose, PartVerdict
from edge.part.faults import FaultCode
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict
from edge.record.journal import Journal, PartInfo, rescue_rows
from edge.record.session import RECORD
from edge.record.session_writer import SessionWriter
from edge.run.commands import ReloadServer, socket_path
from edge.run.operator import Operator
from edge.run.result import LineResult, percentiles
from edge.run.service import Service

POLL = 0.05  # s between looks at whether the line has ended
HELD = 0.002  # s between looks at whether the trigger of a frame has come
HOLD = 0.040  # s that a frame's result may wait for those of the next ones, in throughput mode, while the line is full
LATENCIES = 10_000  # newest ones kept for the percentiles
SWITCH_INTERVAL = 0.0002  # s after which a busy Python thread lets line control run


@dataclass(frozen=True)
class UnderWay:
    """A frame whose inference runs, and what it was started on."""

    frame: CameraFrame
    job: Job
    live: Live


@dataclass(frozen=True)
class Live:
    """What a line inspects with, and what a reload exchanges."""

    inspector: Inspector
    threshold: float
    run: int  # of the journal


class Line:
    """One line, made ready from its file. ``run`` it once."""

    def __init__(self, path: Path, *, control: Path, precision: str = "fp32", backend: str = "auto", say: Callable[[str], None]) -> None:
        """control: the socket at which line control is reached. precision, backend: or ``auto``, also of what a reload takes.

        ``say`` tells the operator of trouble; it may block or fail without harm to the line.

        Raises InputError, BundleError, CameraError, EngineError or LinkError when the line cannot start; nothing is left open.
        """
        self._operator = Operator(say)
        self._precision, self._backend = precision, backend
        self.error: BaseException | None = None
        self._lost: EngineLostError | None = None
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._under_way: deque[UnderWay] = deque()
        self._judged: deque[int] = deque(maxlen=KEPT)  # triggers
        self._next: Live | None = None  # loaded, and waiting for the part that is being inspected
        self._last_frame: Frame | None = None  # that was inspected: what goes live must be able to
        self._faulty: set[int] = set()  # faults of camera and engine that the next inspected frame ends
        self._closers: list[Callable[[], object]] = []
        self._session: SessionWriter | None = None  # that is recorded
        self.file: LineFile = read_line_file(path)
        try:
            self._open(path, control)
        except BaseException:
            self._close()
            raise

    def _open(self, path: Path, control: Path) -> None:
        file = self.file
        inspector, threshold, remark = self._ready(file, path)
        if remark is not None:
            self._operator.tell(remark)
        self._live = Live(inspector, threshold, 0)
        self._closers.append(lambda: self._live.inspector.close())
        if (folder := os.environ.get(RECORD)) is not None:
            try:
                self._session = SessionWriter(Path(folder), self._operator.tell)
                self._closers.append(self._session.close)
            except InputError as error:  # what is recorded must not stop what is inspected
                self._operator.tell(str(error))
        self._camera = make_camera(file.camera, path.parent)
        self._matchers = [Matcher(camera.match, window_counts=camera.window_counts, window_s=camera.window_ms / 1000)
                          for camera in file.camera]
        self._views = Views(len(file.camera))
        self._camera.open()
        self._closers.append(self._camera.close)
        self._control = ControlClient(control, expose=self._expose, ended=self._ended, alarm=self._operator.tell)
        self._closers.append(self._control.close)
        self._journal = Journal(file.resolve(path, file.journal.path), pictures=file.journal.pictures == "rejects",
                                quota_mb=file.journal.quota_mb, failing=self._journal_failing, written=self._control.written)
        self._closers.append(self._journal.close)
        self._live = replace(self._live, run=self._add_run(file, inspector, threshold))
        self._record_live(self._live, file)
        self._journal.start(self._live.run)
        self._closers.append(ReloadServer(socket_path(file.resolve(path, file.journal.path), path), {
            "reload": lambda: self._reload(path), "clear": self._clear, "challenge": self._control.challenge}).close)

    def _ready(self, file: LineFile, path: Path) -> tuple[Inspector, float, str | None]:
        """The bundle of a line file on its engine, warm, after its golden parts came out as they should; its threshold; and a remark."""
        bundle = load_bundle(file.resolve(path, file.line.bundle))
        backend = pick_backend(bundle, self._backend, self._precision)
        precision = bundle.choose(self._precision, backend)
        inspector = Inspector(bundle, precision=precision, backend=backend, threads=file.line.threads, mode=file.line.mode)
        try:
            inspector.group(inspector.warm_up(), min(HOLD, (file.belt.timing.travel - file.belt.timing.lead) / 4))
            scores = golden_scores(inspector)
            threshold = bundle.calibrated_threshold(precision, inspector.backend).value
            remark = judge_golden(bundle, scores, threshold)
            if (frame := self._last_frame) is not None:  # what comes next is like it
                inspector.check(frame)
        except BaseException:
            inspector.close()
            raise
        return inspector, threshold, remark

    def _add_run(self, file: LineFile, inspector: Inspector, threshold: float) -> int:
        bundle = inspector.bundle
        return self._journal.add_run(file.line.name, bundle.folder, bundle.graph_sha256(inspector.precision), threshold)

    def _reload(self, path: Path) -> str:
        """Take the line file's bundle anew. Runs beside the line, which goes on meanwhile; raises LinesideError, and the old one stays."""
        file = read_line_file(path)
        for section in ("camera", "plc", "belt", "journal"):
            if getattr(file, section) != getattr(self.file, section):
                raise InputError(f"[{section}] of {path} has changed", expected="another bundle, threshold or `threads` alone",
                                 next="Stop the line and start it again.")
        if file.line.name != self.file.line.name:
            raise InputError(f"the line's name in {path} has changed", got=file.line.name, expected=self.file.line.name,
                             next="Stop the line and start it again.")
        if self._next is not None:
            raise InputError("the reload before this one is not in use yet", next="Try again.")
        inspector, threshold, remark = self._ready(file, path)
        try:
            if self._control.wait(0):
                raise InputError("the line has ended meanwhile")
            live = Live(inspector, threshold, self._add_run(file, inspector, threshold))
            self._record_live(live, file)
            self._next = live
        except BaseException:
            inspector.close()
            raise
        text = f"{inspector.bundle.folder} is live in {inspector.precision}, threshold {threshold:.6g}"
        self._operator.tell(text)
        return text if remark is None else f"{text}; {remark}"

    def _record_live(self, live: Live, file: LineFile) -> None:
        if self._session is not None:
            self._session.live(live.run, live.inspector, live.threshold, file.line.threads, file.line.mode)

    def _clear(self) -> str:
        self._control.clear()
        return "the faults are cleared; the line takes parts again"

    def _switch(self) -> None:
        """Between two parts: let what was loaded beside the line take over."""
        if self._next is None:
            return
        while self._under_way:
            self._finish()
        old, self._live, self._next = self._live, self._next, None
        self._journal.switch(self._live.run)
        old.inspector.close()

    def _close(self) -> None:
        while self._closers:
            self._closers.pop()()
        if self._next is not None:
            self._next.inspector.close()

    def _expose(self, expose: Expose) -> None:
        for camera, matcher in zip(self.file.camera, self._matchers, strict=True):
            if camera.kind != "folder" or camera.match != "trigger":
                matcher.expose(expose)
        if self._session is not None:
            self._session.exposed(expose)
        self._camera.expose(expose.trigger, expose.part, expose.encoder, expose.at)

    def _ended(self, ended: Ended, info: object) -> None:
        self._journal.part(ended, info if isinstance(info, PartInfo) else None)
        if self._session is not None:
            self._session.ended(ended)

    def _journal_failing(self, text: str | None) -> None:
        if text is None:
            self._control.fault_over(FaultCode.JOURNAL)
        else:
            self._control.fault(FaultCode.JOURNAL, text)

    @property
    def precision(self) -> str:
        """The precision that the line runs in."""
        return self._live.inspector.precision

    @property
    def backend(self) -> str:
        """The backend that the line runs on."""
        return self._live.inspector.backend

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Triggers, passed, rejected, uninspected so far."""
        ledger = self._control.ledger
        return ledger.triggers, ledger.passed, ledger.rejected, ledger.uninspected

    def stop(self) -> None:
        """End every open part, close the port; `run` returns soon after. May be called from a signal handler."""
        self._control.stop()

    def run(self) -> LineResult:
        """Inspect until stopped or until the last part. ``error`` holds what ended it, if it was an error."""
        previous = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        budget = self.file.belt.timing.travel - self.file.belt.timing.lead
        service = Service()
        self._control.start()
        service.tell("READY=1")
        try:
            while not self._control.wait(0):
                service.alive()
                self._switch()
                frame = self._matched_frame()
                if frame is not None and time.monotonic() - frame.host_time < budget:  # else it is late already: catch up
                    self._start(frame)
                if self._under_way and not self._live.inspector.room:
                    self._finish_together()
                elif self._under_way and frame is None:
                    self._finish()
                self._control.flush()
                if self._lost is not None:  # line control goes on, and waits for the next runtime
                    break
        finally:
            if self._lost is None:
                service.tell("STOPPING=1")
                self._control.stop()
                self._control.wait(5)
            sys.setswitchinterval(previous)
            self._closers.remove(self._journal.close)
            unwritten = self._journal.close()
            self._close()
        if unwritten:
            rescue_rows(unwritten, self._journal.path.parent, self._operator.tell)
        self._operator.close()
        self.error = self._lost
        return self._result(len(unwritten))

    def _matched_frame(self) -> CameraFrame | None:
        """The next frame whose part is known, if there is one soon."""
        matched = next((frame for matcher in self._matchers if (frame := matcher.take()) is not None), None)
        if matched is None:
            holds = any(matcher.holds for matcher in self._matchers)
            frame = self._next_frame(0.0 if self._under_way else HELD if holds else POLL)
            if frame is not None:
                if self._session is not None:
                    self._session.frame(frame)
                self._matchers[frame.camera].frame(frame)
                matched = self._matchers[frame.camera].take()
        for number, matcher in enumerate(self._matchers):
            if matcher.unsettled:
                matcher.unsettled = False
                self._camera.settle(number)
            if (remark := matcher.remark()) is not None:
                self._operator.tell(remark)
            while (lost := matcher.unmatched()) is not None:
                if lost.trigger in self._judged:
                    self._operator.tell(f"{lost.text}, and it has its verdict already")
                else:
                    self._operator.tell(lost.text)
                    self._control.verdict(PartVerdict(lost.part, Verdict.UNINSPECTED, Cause.UNMATCHED, trigger=lost.trigger),
                                          PartInfo("", run=self._live.run))
        return matched

    def _next_frame(self, timeout: float) -> CameraFrame | None:
        try:
            return self._camera.next(timeout)
        except Exception as error:  # the parts that it was exposed for end as late
            self._fault(FaultCode.CAMERA, f"the camera failed: {error}")
            time.sleep(POLL)
            return None

    def _fault(self, code: int, text: str) -> None:
        self._faulty.add(code)
        self._control.fault(code, text)

    def _start(self, frame: CameraFrame) -> None:
        """Start the inference of a frame, or say at once why its part is not inspected."""
        if frame.image is None or not frame.complete:
            cause = frame.cause or Cause.CAMERA
            text = frame.text or "the camera delivered an incomplete frame"
            if cause in (Cause.IMAGE, Cause.INCOMPLETE, Cause.UNMATCHED):  # of this frame alone
                self._operator.tell(text)
            else:
                self._fault(FaultCode.CAMERA, text)
            self._uninspected(frame, cause)
            return
        try:
            self._under_way.append(UnderWay(frame, self._live.inspector.start(frame.image), self._live))
        except InputError as error:
            self._operator.tell(f"{frame.source or 'a frame'}: {error}")
            self._uninspected(frame, Cause.IMAGE)
        except Exception as error:
            self._engine_failed(frame, error)

    def _finish_together(self) -> None:
        """The line is full: judge as many as are waited for together, which is one in latency mode."""
        number = self._live.inspector.together
        self._live.inspector.wait(self._under_way[number - 1].job)
        for _ in range(number):
            self._finish()

    def _finish(self) -> None:
        """Judge the frame that was started first, and hand its verdict over."""
        started = self._under_way.popleft()
        frame, live = started.frame, started.live
        try:
            inspection = live.inspector.finish(started.job, live.threshold)
        except Exception as error:
            self._engine_failed(frame, error)
            return
        self._last_frame = frame.image
        while self._faulty:
            self._control.fault_over(self._faulty.pop())
        self._judge(View(frame, inspection), live.run)

    def _judge(self, view: View, run: int) -> None:
        """Hand a part's verdict over, if this view of it decides that."""
        frame = view.frame
        if self._matchers[frame.camera].void(frame.trigger):
            return  # its part was given up meanwhile
        if self._session is not None:
            self._session.judged(view, run)
        deciding = self._views.add(view)
        if deciding is None:
            return
        self._judged.append(frame.trigger)
        frame, inspection = deciding.frame, deciding.inspection
        source = frame.source if len(self.file.camera) == 1 else f"camera {frame.camera + 1}: {frame.source}"
        info = PartInfo(source, run=run)
        if deciding.verdict is Verdict.REJECT:  # what passed needs no picture, and would hold its frame until it leaves the belt
            info = PartInfo(source, frame.image, inspection, run)
        score = None if inspection is None else inspection.score
        self._control.verdict(PartVerdict(frame.part, deciding.verdict, deciding.cause, score, frame.trigger), info)
        if inspection is not None:
            self._latencies.append(1000 * (time.monotonic() - frame.host_time))

    def _engine_failed(self, frame: CameraFrame, error: Exception) -> None:
        """An EngineError, or a defect: the part is not inspected, and the line goes on, unless its GPU is lost: then the runtime ends."""
        if isinstance(error, EngineLostError):
            self._lost = error
        self._fault(FaultCode.ENGINE, str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}")
        self._uninspected(frame, Cause.ENGINE)

    def _uninspected(self, frame: CameraFrame, cause: Cause) -> None:
        self._judge(View(frame, None, cause), self._live.run)

    def _result(self, unwritten: int) -> LineResult:
        journal = {"path": str(self._journal.path), "rows": self._journal.rows_written, "rows_lost": unwritten,
                   "pictures": self._journal.pictures_written, "pictures_dropped": self._journal.pictures_dropped}
        frames = {"without_part": sum(matcher.without_part for matcher in self._matchers), **self._camera.counters()}
        return LineResult(self._control.ledger.as_json(), self._control.wire, percentiles(self._latencies), journal,
                          self._control.realtime, frames)

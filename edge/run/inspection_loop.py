"""The inspection loop: a matched frame goes through the engine, and its verdict goes to line control."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edge.base.errors import EngineError, EngineLostError, InputError
from edge.cameras.matching import KEPT
from edge.inspection.inspector import Job
from edge.inspection.views import View, Views
from edge.line_control.client import ControlClient
from edge.part.events import PartVerdict
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict
from edge.record.journal import PartInfo
from edge.record.recorder import NullRecorder
from edge.run.faults import Faults
from edge.run.live_bundle import Live, LiveBundle
from edge.run.matched_frames import MatchedFrames

LATENCIES = 10_000  # newest ones kept for the percentiles
OF_ONE_FRAME = (Cause.IMAGE, Cause.INCOMPLETE, Cause.UNMATCHED)  # causes that say nothing about the camera


@dataclass(frozen=True)
class Started:
    """A frame whose inference runs, and the bundle that it was started on."""

    frame: CameraFrame
    job: Job
    live: Live


class InspectionLoop:
    """Inspects frames and hands verdicts to line control. `turn` it, always from the same thread."""

    def __init__(self, frames: MatchedFrames, cameras: int, live: LiveBundle, control: ControlClient,
                 recorder: NullRecorder, faults: Faults, *, budget: float, tell: Callable[[str], None]) -> None:
        """cameras: how many views each part has.

        budget: s from exposure to the latest useful verdict. tell: tells the operator.
        """
        self.lost: EngineLostError | None = None  # the GPU is lost: the loop must not be turned any more
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES)  # from exposure to the verdict's hand-over
        self._frames, self._cameras, self._live, self._control = frames, cameras, live, control
        self._recorder, self._faults, self._budget, self._tell = recorder, faults, budget, tell
        self._views = Views(cameras)
        self._started: deque[Started] = deque()
        self._judged: deque[int] = deque(maxlen=KEPT)  # triggers

    def turn(self) -> None:
        """Take at most one frame, and judge what is inferred.

        Waits for a frame for a moment where nothing else is to be done.
        """
        self._live.exchange(self._finish_all)
        frame = self._next_frame()
        # otherwise it is late already: catch up
        if frame is not None and time.monotonic() - frame.host_time < self._budget:
            self._start(frame)
        if self._started and not self._live.current.inspector.room:
            self._finish_together()
        elif self._started and frame is None:
            self._finish()
        self._control.flush()

    def _next_frame(self) -> CameraFrame | None:
        frame = self._frames.next(bool(self._started), self._faults)
        for lost in self._frames.given_up():
            if lost.trigger in self._judged:
                self._tell(f"{lost.text}, and it has its verdict already")
            else:
                self._tell(lost.text)
                self._control.verdict(PartVerdict(lost.part, Verdict.UNINSPECTED, Cause.UNMATCHED,
                                                  trigger=lost.trigger),
                                      PartInfo("", run=self._live.current.run))
        return frame

    def _start(self, frame: CameraFrame) -> None:
        """Start the inference of a frame, or say at once why its part is not inspected."""
        if frame.image is None or not frame.complete:
            cause = frame.cause or Cause.CAMERA
            text = frame.text or "the camera delivered an incomplete frame"
            if cause in OF_ONE_FRAME:
                self._tell(text)
            else:
                self._faults.camera(text)
            self._uninspected(frame, cause)
            return
        live = self._live.current
        try:
            self._started.append(Started(frame, live.inspector.start(frame.image), live))
        except InputError as error:
            self._tell(f"{frame.source or 'a frame'}: {error}")
            self._uninspected(frame, Cause.IMAGE)
        except Exception as error:
            self._engine_failed(frame, error)

    def _finish_all(self) -> None:
        while self._started:
            self._finish()

    def _finish_together(self) -> None:
        """The engine is full: judge as many frames as it is waited for together, which is one in latency mode."""
        inspector = self._live.current.inspector
        number = inspector.together
        inspector.wait(self._started[number - 1].job)
        for _ in range(number):
            self._finish()

    def _finish(self) -> None:
        """Judge the frame that was started first."""
        started = self._started.popleft()
        frame, live = started.frame, started.live
        try:
            inspection = live.inspector.finish(started.job, live.threshold)
        except Exception as error:
            self._engine_failed(frame, error)
            return
        self._live.last_frame = frame.image
        self._faults.inspected()
        self._judge(View(frame, inspection), live.run)

    def _engine_failed(self, frame: CameraFrame, error: Exception) -> None:
        """An EngineError, or a defect: the part is not inspected, and the line goes on, unless the GPU is lost."""
        if isinstance(error, EngineLostError):
            self.lost = error
        self._faults.engine(str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}")
        self._uninspected(frame, Cause.ENGINE)

    def _uninspected(self, frame: CameraFrame, cause: Cause) -> None:
        self._judge(View(frame, None, cause), self._live.current.run)

    def _judge(self, view: View, run: int) -> None:
        """Hand the part's verdict over, if this view decides it."""
        if self._frames.void(view.frame):
            return
        self._recorder.judged(view, run)
        deciding = self._views.add(view)
        if deciding is None:
            return
        frame, inspection = deciding.frame, deciding.inspection
        self._judged.append(frame.trigger)
        source = frame.source if self._cameras == 1 else f"camera {frame.camera + 1}: {frame.source}"
        info = PartInfo(source, run=run)
        # a part that passed needs no picture, and would keep its frame until it leaves the belt
        if deciding.verdict is Verdict.REJECT:
            info = PartInfo(source, frame.image, inspection, run)
        score = None if inspection is None else inspection.score
        self._control.verdict(PartVerdict(frame.part, deciding.verdict, deciding.cause, score, frame.trigger), info)
        if inspection is not None:
            self.latencies_ms.append(1000 * (time.monotonic() - frame.host_time))

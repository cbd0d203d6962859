"""The runtime process of a line: opens all that a line needs, inspects until the line ends, and closes it again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from edge.base.errors import EngineLostError, InputError
from edge.cameras.camera import Camera
from edge.cameras.kinds import make_camera
from edge.cameras.section import CameraSection
from edge.inspection.inspector import Inspector
from edge.line_control.client import ControlClient
from edge.line_file import read_line_file
from edge.part.events import Ended
from edge.record.journal import Journal, PartInfo, rescue_rows
from edge.record.recorder import NullRecorder
from edge.record.session_writer import SessionWriter
from edge.run.commands import CommandServer, socket_path
from edge.run.faults import Faults
from edge.run.inspection_loop import InspectionLoop
from edge.run.live_bundle import BundleLoader, LiveBundle, MakeInspector
from edge.run.matched_frames import MatchedFrames
from edge.run.operator import Operator
from edge.run.result import LineResult, percentiles
from edge.run.service import Service

CONTROL_ENDS = 5.0  # s for line control to end
SWITCH_INTERVAL = 0.0002  # s after which a busy Python thread lets another one run

MakeCamera = Callable[[Sequence[CameraSection], Path], Camera]


class Line:
    """One line, made ready from its file. ``run`` it once."""

    def __init__(self, path: Path, *, control: Path, say: Callable[[str], None], precision: str = "fp32",
                 backend: str = "auto", session: Path | None = None, make_camera: MakeCamera = make_camera,
                 make_inspector: MakeInspector = Inspector, wall_clock: Callable[[], float] = time.time) -> None:
        """path: the line file. control: the socket at which line control is reached. session: the folder that the run
        is recorded in.

        precision, backend: a name, or ``auto``; they also hold for reloads. say: tells the operator; it may block or
        fail without harm to the line. make_camera, make_inspector, wall_clock (s since 1970): a simulation hands in its
        own.

        Raises InputError, BundleError, CameraError, EngineError or LinkError when the line cannot start; nothing is
        left open.
        """
        self.file = read_line_file(path)
        self.error: EngineLostError | None = None  # what ended the run, if it was an error
        self._operator = Operator(say)
        with ExitStack() as opened:
            self._live = LiveBundle(path, self.file, BundleLoader(path, precision, backend, make_inspector))
            opened.callback(self._live.close)
            if self._live.remark is not None:
                self._operator.tell(self._live.remark)
            self._open(path, control, opened, make_camera, session, wall_clock)
            self._opened = opened.pop_all()

    def _open(self, path: Path, control: Path, opened: ExitStack, make_camera: MakeCamera, session: Path | None,
              wall_clock: Callable[[], float]) -> None:
        file, tell = self.file, self._operator.tell
        self._recorder = _open_recorder(session, tell, wall_clock)
        opened.callback(self._recorder.close)
        camera = make_camera(file.camera, path.parent)
        self._frames = MatchedFrames(camera, file.camera, self._recorder, tell)
        camera.open()
        opened.callback(camera.close)
        self._control = ControlClient(control, expose=self._frames.expose, ended=self._ended, alarm=tell)
        opened.callback(self._control.close)
        faults = Faults(self._control)
        journal_path = file.resolve(path, file.journal.path)
        self._journal = Journal(journal_path, pictures=file.journal.pictures == "rejects",
                                quota_mb=file.journal.quota_mb, failing=faults.journal, written=self._control.written,
                                wall_clock=wall_clock)
        opened.callback(self._journal.close)
        self._live.begin(self._journal, self._recorder)
        self._loop = InspectionLoop(self._frames, len(file.camera), self._live, self._control, self._recorder, faults,
                                    budget=file.belt.timing.travel - file.belt.timing.lead, tell=tell)
        commands = {"reload": self._reload, "clear": self._clear, "challenge": self._control.challenge}
        opened.callback(CommandServer(socket_path(journal_path, path), commands).close)

    def _ended(self, ended: Ended, info: object) -> None:
        """A part has its outcome. Called by the thread of line control's client."""
        self._journal.part(ended, info if isinstance(info, PartInfo) else None)
        self._recorder.ended(ended)

    def _reload(self) -> str:
        text = self._live.reload(lambda: self._control.wait(0))
        self._operator.tell(text)
        return text

    def _clear(self) -> str:
        self._control.clear()
        return "the faults are cleared; the line takes parts again"

    @property
    def precision(self) -> str:
        """The precision that the line runs in."""
        return self._live.current.inspector.precision

    @property
    def backend(self) -> str:
        """The backend that the line runs on."""
        return self._live.current.inspector.backend

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
        service = Service()
        self._control.start()
        service.tell("READY=1")
        try:
            while self._loop.lost is None and not self._control.wait(0):
                service.alive()
                self._loop.turn()
        finally:
            if self._loop.lost is None:  # otherwise line control goes on, and waits for the next runtime
                service.tell("STOPPING=1")
                self._control.stop()
                self._control.wait(CONTROL_ENDS)
            sys.setswitchinterval(previous)
            unwritten = self._journal.close()
            self._opened.close()
        if unwritten:
            rescue_rows(unwritten, self._journal.path.parent, self._operator.tell)
        self._operator.close()
        self.error = self._loop.lost
        return self._result(len(unwritten))

    def _result(self, unwritten: int) -> LineResult:
        journal = {"path": str(self._journal.path), "rows": self._journal.rows_written, "rows_lost": unwritten,
                   "pictures": self._journal.pictures_written, "pictures_dropped": self._journal.pictures_dropped}
        return LineResult(self._control.ledger.as_json(), self._control.wire, percentiles(self._loop.latencies_ms),
                          journal, self._control.realtime, self._frames.counters())


def _open_recorder(session: Path | None, tell: Callable[[str], None], wall_clock: Callable[[], float]) -> NullRecorder:
    """The recorder of a session folder. The line must start even where it cannot be recorded."""
    if session is None:
        return NullRecorder()
    try:
        return SessionWriter(session, tell, wall_clock=wall_clock)
    except InputError as error:
        tell(str(error))
        return NullRecorder()

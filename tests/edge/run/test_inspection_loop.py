"""The inspection loop with a camera, an engine and a line control that do what the test says."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.base.errors import CameraError, EngineError, EngineLostError, InputError
from edge.cameras.folder import FolderSection
from edge.inspection.inspector import Inspection
from edge.part.events import Expose
from edge.part.faults import FaultCode
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict
from edge.record.recorder import NullRecorder
from edge.run.faults import Faults
from edge.run.inspection_loop import InspectionLoop
from edge.run.live_bundle import Live
from edge.run.matched_frames import MatchedFrames

IMAGE = np.zeros((8, 8, 1), np.uint8)


class Camera:
    """Delivers what is in ``frames``, and raises the errors in it."""

    def __init__(self) -> None:
        self.frames: list[CameraFrame | Exception] = []

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        self.frames.append(frame(trigger))

    def next(self, timeout: float) -> CameraFrame | None:
        found = self.frames.pop(0) if self.frames else None
        if isinstance(found, Exception):
            raise found
        return found

    def settle(self, camera: int) -> None:
        raise AssertionError("its frames say their trigger")

    def counters(self) -> dict[str, int]:
        return {"frames": 1}


class Engine:
    """Judges every frame PASS, or raises the errors in ``fails``."""

    room = 1

    def __init__(self) -> None:
        self.fails: list[Exception] = []
        self.closed = False

    def start(self, image: Any) -> int:
        if self.fails and isinstance(self.fails[0], InputError):
            raise self.fails.pop(0)
        return 0

    def finish(self, job: int, threshold: float) -> Inspection:
        if self.fails:
            raise self.fails.pop(0)
        grey = np.zeros((2, 2), np.float32)
        return Inspection(Verdict.PASS, 0.1, threshold, [], grey, grey, grey > 1)

    def close(self) -> None:
        self.closed = True


class Control:
    """Line control's client: keeps what it is handed."""

    def __init__(self) -> None:
        self.verdicts: list[tuple[int, Verdict, Cause | None]] = []
        self.faults: list[tuple[FaultCode, str]] = []

    def verdict(self, verdict: Any, info: Any) -> None:
        self.verdicts.append((verdict.part, verdict.verdict, verdict.cause))

    def fault(self, code: FaultCode, text: str) -> None:
        self.faults.append((code, text))

    def fault_over(self, code: FaultCode) -> None:
        self.faults.append((code, "over"))

    def flush(self) -> None:
        """Nothing waits."""


def frame(trigger: int, **fields: Any) -> CameraFrame:
    fields = {"image": IMAGE, **fields}
    return CameraFrame(trigger, 10 + trigger, trigger, fields.pop("host_time", time.monotonic()), fields.pop("image"),
                       **fields)


@pytest.fixture
def line():
    """A loop and what it works with: ``run(count)`` turns it."""
    parts: tuple[Any, ...] = (Camera(), Engine(), Control())
    (camera, engine, control), shown = parts, list[str]()
    sections = [FolderSection(kind="folder", path="frames")]
    live: Any = SimpleNamespace(current=Live(engine, 0.5, 1), last_frame=None, exchange=lambda finish: None)
    frames = MatchedFrames(camera, sections, NullRecorder(), shown.append)
    loop = InspectionLoop(frames, 1, live, control, NullRecorder(), Faults(control), budget=0.5, tell=shown.append)

    def run(count: int) -> None:
        for _ in range(count):
            loop.turn()

    return SimpleNamespace(camera=camera, engine=engine, control=control, shown=shown, frames=frames, loop=loop,
                           live=live, run=run)


def test_a_triggered_part_gets_its_verdict(line):
    line.frames.expose(Expose(11, None, 1, time.monotonic()))
    line.run(2)
    assert line.control.verdicts == [(11, Verdict.PASS, None)] and not line.control.faults
    assert line.live.last_frame is IMAGE and len(line.loop.latencies_ms) == 1


def test_a_camera_that_fails_is_a_fault_until_a_frame_is_inspected(line):
    line.camera.frames = [CameraError("the cable is out"), frame(1)]
    line.run(1)
    assert line.control.faults == [(FaultCode.CAMERA, "the camera failed: the cable is out.")]
    line.run(2)
    assert line.control.faults[1:] == [(FaultCode.CAMERA,
                                        "over")] and line.control.verdicts == [(11, Verdict.PASS, None)]


@pytest.mark.parametrize(("fields", "cause", "faults"), [
    ({"cause": Cause.NO_FRAME, "text": "dry"}, Cause.NO_FRAME, [(FaultCode.CAMERA, "dry")]),
    ({}, Cause.CAMERA, [(FaultCode.CAMERA, "the camera delivered an incomplete frame")]),
    ({"cause": Cause.IMAGE, "text": "no image"}, Cause.IMAGE, []),
    ({"cause": Cause.INCOMPLETE, "text": "packets lost"}, Cause.INCOMPLETE, [])])
def test_a_part_without_a_whole_frame_is_not_inspected(line, fields, cause, faults):
    line.camera.frames = [frame(1, image=None, **fields)]
    line.run(1)
    assert line.control.verdicts == [(11, Verdict.UNINSPECTED, cause)] and line.control.faults == faults
    assert line.shown == ([fields["text"]] if not faults else [])


def test_a_frame_that_does_not_fit_the_model_costs_its_part_alone(line):
    line.engine.fails = [InputError("the frame is too small")]
    line.camera.frames = [frame(1, source="a.png"), frame(2)]
    line.run(3)
    assert line.control.verdicts == [(11, Verdict.UNINSPECTED, Cause.IMAGE), (12, Verdict.PASS, None)]
    assert line.shown == ["a.png: the frame is too small."] and not line.control.faults


@pytest.mark.parametrize(("error", "text"), [
    (EngineError("it failed"), "it failed."), (ZeroDivisionError("by 0"), "ZeroDivisionError: by 0")])
def test_an_inference_that_fails_costs_its_part_and_the_loop_goes_on(line, error, text):
    line.engine.fails = [error]
    line.camera.frames = [frame(1), None, frame(2), None]
    line.run(4)
    assert line.control.verdicts == [(11, Verdict.UNINSPECTED, Cause.ENGINE), (12, Verdict.PASS, None)]
    assert line.control.faults == [(FaultCode.ENGINE, text), (FaultCode.ENGINE, "over")] and line.loop.lost is None


def test_a_gpu_that_is_lost_ends_the_loop(line):
    line.engine.fails = [EngineLostError("the GPU is lost")]
    line.camera.frames = [frame(1)]
    line.run(2)
    assert isinstance(line.loop.lost,
                      EngineLostError) and line.control.verdicts == [(11, Verdict.UNINSPECTED, Cause.ENGINE)]


def test_a_frame_that_is_too_late_is_skipped(line):
    line.camera.frames = [frame(1, host_time=time.monotonic() - 1), frame(2)]
    line.run(3)
    assert line.control.verdicts == [(12, Verdict.PASS, None)]


"""A trial of a line's cameras without its PLC: opened and exposed as by the line, each frame noted, and looked at where time allows."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge.cameras.kinds import make_camera
from edge.cameras.live import LiveCamera
from edge.cameras.section import CameraSection
from edge.images.frames import Frame
from edge.part.frame import CameraFrame
from edge.tools.camera_test.advice import advise
from edge.tools.camera_test.album import Album
from edge.tools.camera_test.report import CameraReport, Taken, report_camera

POLL = 0.1  # s
SETTLE = 2.0  # s that the first frame may take
STRAGGLE = 1.0  # s that the last frames may take, and that a live camera needs to know which ones are lost
WAITING = 4  # frames that are yet to be looked at; what comes then is counted, and not looked at
GIVES_WAY = 5  # niceness of looking, so that grabbing goes first
TOLD_ERRORS = 5

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tried:
    """What came of one camera's trial."""

    report: CameraReport
    album: Album
    taken: Sequence[Taken]


class CameraTrial:
    """One camera: a thread that grabs, and one that looks."""

    def __init__(self, number: int, section: CameraSection, folder: Path, free: bool) -> None:
        """number: from 1. free: let a camera run free that the line or a sensor would trigger."""
        freed = section.freed() if free else None
        self._freed = freed is not None
        section = freed or section.endless()
        self._number, self._section = number, section
        self._camera = make_camera([section], folder)
        self.triggered = section.line_triggers
        if isinstance(self._camera, LiveCamera):
            self._camera.deliver_all()
        self._triggers: list[float] = []
        self._taken: list[Taken] = []
        self._errors: list[str] = []
        self._album = Album()
        self._to_look_at: queue.Queue[tuple[Frame, float] | None] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=work, name=f"camera-{number} {name}", daemon=True)
                         for name, work in (("grab", self._grab), ("look", self._look))]

    def open(self) -> None:
        """Raises CameraError."""
        self._camera.open()
        for thread in self._threads:
            thread.start()

    def expose(self) -> None:
        """Trigger the camera, if the line would."""
        if self.triggered:
            at = time.monotonic()
            self._triggers.append(at)
            self._camera.expose(len(self._triggers), len(self._triggers), None, at)

    @property
    def answered(self) -> bool:
        """Whether something came for each trigger."""
        return not self.triggered or len(self._taken) >= len(self._triggers)

    def close(self) -> None:
        """Free the camera."""
        self._closing.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._camera.close()

    def _grab(self) -> None:
        while not self._closing.is_set():
            try:
                frame = self._camera.next(POLL)
            except Exception as error:  # a connection that is lost; it comes back by itself
                self._complain(str(error))
                self._closing.wait(POLL)
                continue
            if frame is not None:
                self._note(frame, time.monotonic())
        self._to_look_at.put(None)

    def _note(self, frame: CameraFrame, now: float) -> None:
        self._taken.append(Taken(now, replace(frame, image=None), frame.image is not None))
        if frame.image is None:
            self._complain(frame.text)
        else:
            with contextlib.suppress(queue.Full):
                self._to_look_at.put_nowait((frame.image, now if math.isnan(frame.host_time) else frame.host_time))

    def _complain(self, text: str) -> None:
        if len(self._errors) < TOLD_ERRORS and text not in self._errors:
            self._errors.append(text)

    def _look(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GIVES_WAY)  # of this thread alone, on Linux
        while (given := self._to_look_at.get()) is not None:
            self._album.add(*given)

    def finish(self, seconds: float, rate: float) -> Tried:
        """Close the camera, and say what was found. ``rate``: triggers a second."""
        self.close()
        counters = self._camera.counters()
        section = self._section
        name = self._camera.name if isinstance(self._camera, LiveCamera) else section.name
        report = report_camera(self._number, section.kind, name, self._taken, self._triggers if self.triggered else None,
                               [look for _, look in self._album.looks], counters, seconds, self._errors)
        if self._freed:  # the line takes its frames in another way
            report = replace(report, window_ms=None)
        return Tried(replace(report, advice=advise(report, section, rate)), self._album, self._taken)


def try_cameras(sections: Sequence[CameraSection], folder: Path, *, seconds: float, rate: float, free: bool,
                progress: Progress = lambda *_: None) -> list[Tried]:
    """Try the cameras of a line file in ``folder``, all at once, for so many ``seconds``, with ``rate`` triggers a second.

    SIGINT ends it early. Raises CameraError for a camera that cannot be opened.
    """
    trials = [CameraTrial(number, section, folder, free) for number, section in enumerate(sections, 1)]
    with contextlib.ExitStack() as opened:
        for trial in trials:
            trial.open()
            opened.callback(trial.close)
        start = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            _expose(trials, start, seconds, rate, progress)
        _wait(trials, time.monotonic() + STRAGGLE)
        elapsed = time.monotonic() - start
        opened.pop_all()
        return [trial.finish(elapsed, rate) for trial in trials]


def _expose(trials: Sequence[CameraTrial], start: float, seconds: float, rate: float, progress: Progress) -> None:
    """The first trigger alone, to see which frame answers it, then the others at their rate."""
    _expose_all(trials)
    _wait(trials, min(start + SETTLE, start + seconds))
    first, number = time.monotonic(), 0
    while (due := first + number / rate) < start + seconds:
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(left, POLL))
            progress("testing the cameras", round(1000 * (time.monotonic() - start)), round(1000 * seconds))
        _expose_all(trials)
        number += 1
    time.sleep(max(0.0, start + seconds - time.monotonic()))
    progress("testing the cameras", round(1000 * seconds), round(1000 * seconds))


def _expose_all(trials: Sequence[CameraTrial]) -> None:
    for trial in trials:
        trial.expose()


def _wait(trials: Sequence[CameraTrial], until: float) -> None:
    while not all(trial.answered for trial in trials) and time.monotonic() < until:
        time.sleep(0.005)

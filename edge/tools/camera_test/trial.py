"""Tests a line's cameras without its PLC: triggers them as the line does, counts frames, and measures images."""

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

NEXT_TIMEOUT = 0.1  # s that the grab thread waits for a frame before it checks whether the test is over
ERROR_PAUSE = 0.1  # s after an error, before the camera is asked again
PROGRESS_EVERY = 0.1  # s
FIRST_FRAME = 2.0  # s that the first frame may take
LAST_FRAMES = 1.0  # s that the last frames may take, and that a live camera needs to know which ones are lost
TO_MEASURE = 4  # frames that may wait to be measured; more are only counted
NICENESS = 5  # of the measuring thread, so that the grab thread goes first
LISTED_ERRORS = 5

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tried:
    """The results of one camera."""

    report: CameraReport
    album: Album
    taken: Sequence[Taken]


class CameraTrial:
    """One camera, with a thread that grabs frames and a thread that measures them."""

    def __init__(self, number: int, section: CameraSection, folder: Path, free: bool) -> None:
        """number: from 1. free: let the camera run free even if the line or a sensor normally triggers it."""
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
        self._to_measure: queue.Queue[tuple[Frame, float] | None] = queue.Queue(TO_MEASURE)
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=work, name=f"camera-{number} {name}", daemon=True)
                         for name, work in (("grab", self._grab), ("measure", self._measure))]

    def open(self) -> None:
        """Open the camera. Raises CameraError."""
        self._camera.open()
        for thread in self._threads:
            thread.start()

    def expose(self) -> None:
        """Trigger the camera, if the line would trigger it."""
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
                frame = self._camera.next(NEXT_TIMEOUT)
            except Exception as error:  # such as a lost connection, which the camera restores by itself
                self._add_error(str(error))
                self._closing.wait(ERROR_PAUSE)
                continue
            if frame is not None:
                self._take(frame, time.monotonic())
        self._to_measure.put(None)

    def _take(self, frame: CameraFrame, now: float) -> None:
        self._taken.append(Taken(now, replace(frame, image=None), frame.image is not None))
        if frame.image is None:
            self._add_error(frame.text)
        else:
            with contextlib.suppress(queue.Full):
                self._to_measure.put_nowait((frame.image, now if math.isnan(frame.host_time) else frame.host_time))

    def _add_error(self, text: str) -> None:
        if len(self._errors) < LISTED_ERRORS and text not in self._errors:
            self._errors.append(text)

    def _measure(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)  # on Linux, of this thread only
        while (waiting := self._to_measure.get()) is not None:
            self._album.add(*waiting)

    def finish(self, seconds: float, rate: float) -> Tried:
        """Close the camera and return the results. ``rate``: triggers per second during the test."""
        self.close()
        counters = self._camera.counters()
        section = self._section
        name = self._camera.name if isinstance(self._camera, LiveCamera) else section.name
        triggers = self._triggers if self.triggered else None
        report = report_camera(self._number, section.kind, name, self._taken, triggers,
                               [look for _, look in self._album.looks], counters, seconds, self._errors)
        if self._freed:  # the line does not run this camera free, so it needs another window
            report = replace(report, window_ms=None)
        return Tried(replace(report, advice=advise(report, section, rate)), self._album, self._taken)


def try_cameras(sections: Sequence[CameraSection], folder: Path, *, seconds: float, rate: float, free: bool,
                progress: Progress = lambda *_: None) -> list[Tried]:
    """Test all cameras of a line file in ``folder`` at once. rate: triggers per second.

    SIGINT ends the test early. Raises CameraError if a camera cannot be opened.
    """
    trials = [CameraTrial(number, section, folder, free) for number, section in enumerate(sections, 1)]
    with contextlib.ExitStack() as opened:
        for trial in trials:
            trial.open()
            opened.callback(trial.close)
        start = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            _expose(trials, start, seconds, rate, progress)
        _wait(trials, time.monotonic() + LAST_FRAMES)
        elapsed = time.monotonic() - start
        opened.pop_all()
        return [trial.finish(elapsed, rate) for trial in trials]


def _expose(trials: Sequence[CameraTrial], start: float, seconds: float, rate: float, progress: Progress) -> None:
    """Give one trigger and wait for its frame, so that it is clear which trigger it answers. Then give the rest."""
    _expose_all(trials)
    _wait(trials, min(start + FIRST_FRAME, start + seconds))
    first, number = time.monotonic(), 0
    while (due := first + number / rate) < start + seconds:
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(left, PROGRESS_EVERY))
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

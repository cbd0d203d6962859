"""A camera that a driver reaches: threads, frame ids that do not wrap, gaps, lost connections and triggers.

A driver only connects, triggers and grabs. Everything that all such cameras have in common is here.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
import warnings
from collections import Counter, deque
from dataclasses import replace
from typing import Any, NamedTuple

from edge.base.errors import CameraError
from edge.cameras import driver as drivers
from edge.cameras.frame_ids import LISTED_LOST, REORDER_WAIT, DeviceClock, FrameIds
from edge.cameras.frame_queue import FrameQueue
from edge.cameras.matching import CLOCK_ERROR
from edge.cameras.section import CameraTrigger
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause

GRAB_TIMEOUT = 0.1  # s
RECONNECT_EVERY = 1.0  # s
SETTLE_PAUSE = 0.5  # s without a trigger; after that no frame of an earlier trigger can arrive
CLOSE_TIMEOUT = 2.0  # s that a driver may take to return from a call when the camera is closed
STATISTICS_EVERY = 0.5  # s


class _Trigger(NamedTuple):
    """A trigger that the line asked a frame for."""

    number: int
    part: int
    encoder: int | None
    at: float


class LiveCamera:
    """Makes a `Camera` of a driver. A lost connection is reported once, and then retried until the camera is back."""

    def __init__(self, driver: drivers.Driver, trigger: CameraTrigger, window: float) -> None:
        """window: s from a trigger to its exposure, at most. The line has half of that time to trigger the camera."""
        self._driver, self._mode, self._window = driver, trigger, window
        self._frames = FrameQueue()
        self._counts: Counter[str] = Counter(dict.fromkeys((
            "frames", "incomplete", "lost", "overtaken", "doubled", "unasked", "untriggered", "disconnects",
            "reconnects"), 0))
        self._statistics: dict[str, int] = {}  # of the driver, on this connection
        self._statistics_at = 0.0
        self._earlier_statistics: Counter[str] = Counter()  # of the connections before this one
        self._to_give: queue.SimpleQueue[_Trigger | None] = queue.SimpleQueue()  # trigger = "software"
        self._to_answer: deque[_Trigger] = deque()  # trigger = "off": triggers that wait for a frame
        self._given: list[_Trigger] = []  # on this connection, until its first frame
        self._first_came = threading.Event()  # the first frame of this connection
        self._pause_until: float | None = None  # no trigger is given until then
        self._trigger_error: Exception | None = None
        self._lost_because = ""  # why there is no connection; empty while there is one
        self._connection = -1
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._grab_loop, name=f"grab {driver.name}", daemon=True)]
        if trigger == "software":
            self._threads.append(
                threading.Thread(target=self._trigger_loop, name=f"trigger {driver.name}", daemon=True))

    @property
    def name(self) -> str:
        """The driver's name."""
        return self._driver.name

    def deliver_all(self) -> None:
        """Let `next` return every frame of a free-running camera, not only those after a trigger. Before `open`."""
        if self._mode == "off":
            self._mode = "hardware"

    def open(self) -> None:
        try:
            self._connect()
        except BaseException:
            with contextlib.suppress(Exception):
                self._driver.disconnect()
            raise
        for thread in self._threads:
            thread.start()

    def _connect(self) -> None:
        self._driver.connect()
        self._ids, self._clock = FrameIds(*self._driver.ids), DeviceClock()
        self._begin_connection()
        self._trigger_error, self._lost_because = None, ""

    def _begin_connection(self) -> None:
        self._connection += 1
        self._given.clear()
        self._first_came.clear()

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        new = _Trigger(trigger, part, encoder, at)
        if self._mode == "software":
            self._to_give.put(new)
        elif self._mode == "off":
            self._to_answer.append(new)

    def next(self, timeout: float) -> CameraFrame | None:
        return self._frames.get(timeout)

    def settle(self, camera: int = 0) -> None:
        """Give no trigger until no frame is on its way. Then the next frame must belong to the next trigger."""
        self._pause_until = time.monotonic() + SETTLE_PAUSE

    def counters(self) -> dict[str, int]:
        """All counts by name. Those of the driver may be `STATISTICS_EVERY` old while it runs."""
        total = Counter(self._earlier_statistics)
        total.update(self._statistics)
        return {**self._counts, "dropped": self._frames.dropped, **total}

    def close(self) -> None:
        self._closing.set()
        self._to_give.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(CLOSE_TIMEOUT)
        ended = not any(thread.is_alive() for thread in self._threads)
        if ended and self._connection >= 0 and not self._lost_because:
            self._disconnect("closed")

    # The trigger thread. A camera that does not answer must not block the thread that calls `expose`.

    def _trigger_loop(self) -> None:
        while (trigger := self._to_give.get()) is not None:
            if reason := self._lost_because:
                self._report_untriggered(trigger, Cause.CAMERA, reason)
            elif time.monotonic() - trigger.at > self._window / 2:  # the camera would see another part by now
                late = f"it was not triggered within {500 * self._window:g} ms"
                self._report_untriggered(trigger, Cause.CAMERA, late)
            elif self._still_paused():
                paused = f"it is not triggered for {SETTLE_PAUSE:g} s, because its frames could not be told apart"
                self._report_untriggered(trigger, Cause.UNMATCHED, paused)
            else:
                self._give(trigger)

    def _give(self, trigger: _Trigger) -> None:
        connection = self._connection
        if not self._first_came.is_set():
            self._given.append(trigger)
        try:
            self._driver.trigger()
            # Wait, so that there is just one trigger that the first frame of a connection can belong to.
            self._first_came.wait(REORDER_WAIT)
        except Exception as error:
            # Nobody knows whether it took a frame, so the grab thread must reconnect, unless it has done so meanwhile.
            if connection == self._connection:
                self._trigger_error = error
            self._report_untriggered(trigger, Cause.CAMERA, self._reason(error))

    def _still_paused(self) -> bool:
        """Whether `settle` forbids this trigger. Once its pause is over, a new connection begins."""
        if self._pause_until is None:
            return False
        if time.monotonic() < self._pause_until:
            return True
        self._begin_connection()
        self._pause_until = None
        return False

    def _report_untriggered(self, trigger: _Trigger, cause: Cause, text: str) -> None:
        self._counts["untriggered"] += 1
        self._frames.put(CameraFrame(
            trigger.number, trigger.part, 0, trigger.at, None, encoder=trigger.encoder, cause=cause,
            text=f"{self._driver.name}: {text}", exposed=False))

    # The grab thread.

    def _grab_loop(self) -> None:
        while not self._closing.is_set():
            if self._lost_because:
                self._reconnect()
                continue
            try:
                grabbed = self._driver.grab(GRAB_TIMEOUT)
                now = time.monotonic()
                if self._trigger_error is not None:
                    raise self._trigger_error
                if grabbed is not None:
                    self._take(grabbed, now)
                self._report_lost(now)
                self._update_statistics(now)
            except Exception as error:  # an SDK may raise anything
                self._lose_connection(error)

    def _lose_connection(self, error: Exception) -> None:
        self._counts["disconnects"] += 1
        self._disconnect(self._reason(error))
        self._frames.put(CameraError(f"{self._driver.name} is gone", got=self._lost_because,
                                     next="The line keeps trying to reconnect."))

    def _reason(self, error: Exception) -> str:
        """The error's text without the camera's name, which the message starts with anyway."""
        return str(error).removeprefix(self._driver.name).lstrip(": ").rstrip(".") or type(error).__name__

    def _disconnect(self, reason: str) -> None:
        """Free the camera, and keep what its driver counted."""
        with contextlib.suppress(Exception):
            self._statistics = self._driver.statistics()
        self._lost_because = reason
        self._earlier_statistics.update(self._statistics)
        self._statistics = {}
        with contextlib.suppress(Exception):
            self._driver.disconnect()

    def _reconnect(self) -> None:
        self._answer_without_frame(time.monotonic(), Cause.CAMERA, self._lost_because)
        if self._closing.wait(RECONNECT_EVERY):
            return
        try:
            self._connect()
        except Exception as error:
            self._lost_because = self._reason(error)
            with contextlib.suppress(Exception):
                self._driver.disconnect()
            return
        self._counts["reconnects"] += 1

    def _take(self, grabbed: drivers.Grabbed, now: float) -> None:
        taken = self._ids.take(grabbed.frame_id, now, grabbed.device_time)
        if taken is None:
            self._counts["doubled"] += 1
            return
        number, missing = taken
        self._counts["frames"] += 1
        self._counts["overtaken"] += missing < 0
        self._counts["lost"] += max(0, missing - LISTED_LOST)
        device_time, text = grabbed.device_time, f"{self._driver.name}: frame {number}"
        at = now if grabbed.image is not None else math.nan
        if device_time is not None:
            at = self._clock.to_host(device_time, now)
        frame = CameraFrame(0, 0, number, at, grabbed.image, grabbed.text or text, device_time, grabbed.encoder,
                            connection=self._connection, exposure_us=grabbed.exposure_us, lost=max(0, missing))
        if grabbed.image is None:
            self._counts["incomplete"] += 1
            frame = self._incomplete(frame, f"{text} is incomplete: {grabbed.text}")
        if not self._first_came.is_set() and (given := list(self._given)):
            self._deliver_first(frame, given)
            return
        self._deliver(frame, now)

    def _deliver_first(self, frame: CameraFrame, given: list[_Trigger]) -> None:
        """The first frame of a connection belongs to its first trigger, if no other was given before it came."""
        if len(given) == 1 and not frame.host_time < given[0].at - CLOCK_ERROR:
            self._deliver_for(given[0], frame)
        else:
            self.settle()
            text = f"{self._driver.name}: frame {frame.frame_id} may show any of {len(given)} parts"
            for trigger in given:
                self._deliver_for(trigger, replace(frame, image=None, complete=False, cause=Cause.UNMATCHED, text=text))
        self._first_came.set()

    @staticmethod
    def _incomplete(frame: CameraFrame, text: str) -> CameraFrame:
        return replace(frame, complete=False, cause=Cause.INCOMPLETE, text=text, image=None)

    def _report_lost(self, now: float) -> None:
        for number in self._ids.overdue(now):
            self._counts["lost"] += 1
            frame = CameraFrame(0, 0, number, math.nan, None, connection=self._connection)
            if self._mode != "off":
                self._frames.put(self._incomplete(frame, f"{self._driver.name}: frame {number} never came"))
        if self._mode == "off":
            self._answer_late(now - REORDER_WAIT)

    def _deliver(self, frame: CameraFrame, now: float) -> None:
        if self._mode != "off":
            self._frames.put(frame)
            return
        at = now if math.isnan(frame.host_time) else frame.host_time
        self._answer_late(at)
        triggers = []
        while self._to_answer and self._to_answer[0].at <= at:
            triggers.append(self._to_answer.popleft())
        self._counts["unasked"] += not triggers
        for trigger in triggers:
            if len(triggers) == 1:
                self._deliver_for(trigger, frame)
            else:
                self._deliver_for(trigger, CameraFrame(
                    0, 0, frame.frame_id, 0.0, None, cause=Cause.UNMATCHED, connection=self._connection,
                    text=f"{self._driver.name}: frame {frame.frame_id} may show any of {len(triggers)} parts"))

    def _answer_late(self, now: float) -> None:
        """Answer the triggers whose window was over at ``now``."""
        text = f"no frame within {1000 * self._window:g} ms of the trigger"
        self._answer_without_frame(now - self._window, Cause.NO_FRAME, text)

    def _answer_without_frame(self, until: float, cause: Cause, text: str) -> None:
        """Answer all triggers up to this time: there is no frame for them."""
        frame = CameraFrame(0, 0, 0, 0.0, None, cause=cause, text=f"{self._driver.name}: {text}")
        while self._to_answer and self._to_answer[0].at <= until:
            self._deliver_for(self._to_answer.popleft(), frame)

    def _deliver_for(self, trigger: _Trigger, frame: CameraFrame) -> None:
        number, part, encoder, at = trigger
        encoder = encoder if frame.encoder is None else frame.encoder
        self._frames.put(replace(frame, trigger=number, part=part, encoder=encoder, host_time=at))

    def _update_statistics(self, now: float) -> None:
        if now - self._statistics_at > STATISTICS_EVERY:
            self._statistics, self._statistics_at = self._driver.statistics(), now


def __getattr__(name: str) -> Any:
    """The old path of `Driver` and `Grabbed`, for drivers written before 0.2. It will be removed in 0.3."""
    if name in ("Driver", "Grabbed"):
        warnings.warn(f"edge.cameras.live.{name} will be removed in Lineside 0.3; write: from lineside import {name}",
                      FutureWarning, stacklevel=2)
        return getattr(drivers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

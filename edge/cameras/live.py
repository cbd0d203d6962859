"""A camera that is there: its driver in a thread of its own, ids without wrap-around, gaps, lost connections, triggers.

A kind of camera is a `Driver`, which connects, triggers and grabs; all else is here, the same for all of them.
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
from edge.cameras.frame_ids import STRAGGLE, TOLD_GAP, DeviceClock, FrameIds
from edge.cameras.frame_queue import FrameQueue
from edge.cameras.matching import EARLY
from edge.cameras.section import CameraTrigger
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause

POLL = 0.1  # s
RECONNECT = 1.0  # s between two tries
QUIET = 0.5  # s without a trigger, after which no frame of an earlier one comes any more
LEAVE = 2.0  # s that a driver may take to come back from a call when the camera is closed
COUNT_EVERY = 0.5  # s


class _Asked(NamedTuple):
    """A trigger that a frame is to be taken for."""

    trigger: int
    part: int
    encoder: int | None
    at: float


class LiveCamera:
    """A driver as a `Camera`. A connection that is lost is told once, and made again and again."""

    def __init__(self, driver: drivers.Driver, trigger: CameraTrigger, window: float) -> None:
        """window: s from a trigger within which a frame has to be exposed; half of it is the line's, to trigger the camera."""
        self._driver, self._mode, self._window = driver, trigger, window
        self._frames = FrameQueue()
        self._counts: Counter[str] = Counter(dict.fromkeys(
            ("frames", "incomplete", "lost", "overtaken", "doubled", "unasked", "untriggered", "disconnects", "reconnects"), 0))
        self._statistics: Counter[str] = Counter()  # of the connections before this one
        self._triggers: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._asked: deque[_Asked] = deque()  # of a camera that runs free
        self._given: list[_Asked] = []  # triggers of this session, until its first frame
        self._seen = threading.Event()  # that frame
        self._quiet_until: float | None = None  # no trigger is given until then, and a new session begins
        self._figures: dict[str, int] = {}  # of the driver, this connection
        self._counted = 0.0
        self._failed: Exception | None = None  # a trigger
        self._away = ""  # why it is not connected
        self._session = -1
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._grab, name=f"grab {driver.name}", daemon=True)]
        if trigger == "software":
            self._threads.append(threading.Thread(target=self._fire, name=f"trigger {driver.name}", daemon=True))

    @property
    def name(self) -> str:
        """The driver's."""
        return self._driver.name

    def hand_out_all(self) -> None:
        """Let `next` give every frame of a camera that runs free, not only those asked for. Before `open`."""
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
        self._session += 1
        self._given.clear()
        self._seen.clear()
        self._failed, self._away = None, ""

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        asked = _Asked(trigger, part, encoder, at)
        if self._mode == "software":
            self._triggers.put(asked)
        elif self._mode == "off":
            self._asked.append(asked)

    def next(self, timeout: float) -> CameraFrame | None:
        return self._frames.get(timeout)

    def settle(self, camera: int = 0) -> None:
        """Give no trigger for a while, so that no frame is under way; the first one after it is that of the next trigger."""
        self._quiet_until = time.monotonic() + QUIET

    def counters(self) -> dict[str, int]:
        """All counts; those of the driver may be half a second old while it runs."""
        total = Counter(self._statistics)
        total.update(self._figures)
        return {**self._counts, "dropped": self._frames.dropped, **total}

    def close(self) -> None:
        self._closing.set()
        self._triggers.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(LEAVE)
        if not self._away and self._session >= 0 and not any(thread.is_alive() for thread in self._threads):
            self._disconnect("closed")

    # The thread that triggers: a camera that does not answer must not hold up who asks.

    def _fire(self) -> None:
        while (asked := self._triggers.get()) is not None:
            if not (away := self._away) and time.monotonic() - asked.at > self._window / 2:
                away = f"it was not triggered within {500 * self._window:g} ms"  # and would show another part by now
            if not away and not self._settled():
                self._refuse(asked, Cause.UNMATCHED, f"no trigger is given for {QUIET:g} s, to be certain again which frame is of which")
                continue
            if not away:
                session = self._session
                if not self._seen.is_set():
                    self._given.append(asked)
                try:
                    self._driver.trigger()
                    self._seen.wait(STRAGGLE)  # the first frame of a session is surely of its first trigger when there was no other
                    continue
                except Exception as error:  # whether it took a frame is not known: all begins anew, unless it did so meanwhile
                    if session == self._session:
                        self._failed = error
                    away = self._why(error)
            self._refuse(asked, Cause.CAMERA, away)

    def _settled(self) -> bool:
        if self._quiet_until is None:
            return True
        if time.monotonic() < self._quiet_until:
            return False
        self._session += 1
        self._given.clear()
        self._seen.clear()
        self._quiet_until = None
        return True

    def _refuse(self, asked: _Asked, cause: Cause, text: str) -> None:
        """A trigger that was not given."""
        self._counts["untriggered"] += 1
        self._frames.put(CameraFrame(asked.trigger, asked.part, 0, asked.at, None, encoder=asked.encoder, cause=cause,
                                     text=f"{self._driver.name}: {text}", exposed=False))

    # The thread that grabs.

    def _grab(self) -> None:
        while not self._closing.is_set():
            if self._away:
                self._reconnect()
                continue
            try:
                grabbed = self._driver.grab(POLL)
                now = time.monotonic()
                if self._failed is not None:
                    raise self._failed
                if grabbed is not None:
                    self._take(grabbed, now)
                self._look_for_lost(now)
                self._count(now)
            except Exception as error:  # whatever an SDK raises
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._counts["disconnects"] += 1
        self._disconnect(self._why(error))
        self._frames.put(CameraError(f"{self._driver.name} is gone", got=self._away, next="It is looked for again and again."))

    def _why(self, error: Exception) -> str:
        """What an error says, without the camera's name, which stands before it anyway."""
        return str(error).removeprefix(self._driver.name).lstrip(": ").rstrip(".") or type(error).__name__

    def _disconnect(self, why: str) -> None:
        """Free the camera, and keep what its driver counted."""
        with contextlib.suppress(Exception):
            self._figures = self._driver.statistics()
        self._away = why
        self._statistics.update(self._figures)
        self._figures = {}
        with contextlib.suppress(Exception):
            self._driver.disconnect()

    def _reconnect(self) -> None:
        self._answer(time.monotonic(), Cause.CAMERA, self._away)
        if self._closing.wait(RECONNECT):
            return
        try:
            self._connect()
        except Exception as error:
            self._away = self._why(error)
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
        self._counts["lost"] += max(0, missing - TOLD_GAP)
        device, text = grabbed.device_time, f"{self._driver.name}: frame {number}"
        at = now if device is None and grabbed.image is not None else math.nan if device is None else self._clock.moment(device, now)
        frame = CameraFrame(0, 0, number, at, grabbed.image, grabbed.text or text, device, grabbed.encoder, session=self._session,
                            exposure_us=grabbed.exposure_us, lost=max(0, missing))
        if grabbed.image is None:
            self._counts["incomplete"] += 1
            frame = self._without(frame, f"{text} is incomplete: {grabbed.text}")
        if not self._seen.is_set() and (given := list(self._given)):
            self._first(frame, given)
            return
        self._hand_out(frame, now)

    def _first(self, frame: CameraFrame, given: list[_Asked]) -> None:
        """The first frame of a session is of its first trigger, when there was no other before it came."""
        if len(given) == 1 and not frame.host_time < given[0].at - EARLY:
            self._put(given[0], frame)
        else:
            self.settle()
            for asked in given:
                self._put(asked, replace(frame, image=None, complete=False, cause=Cause.UNMATCHED,
                                         text=f"{self._driver.name}: frame {frame.frame_id} may be of {len(given)} parts"))
        self._seen.set()

    @staticmethod
    def _without(frame: CameraFrame, text: str) -> CameraFrame:
        return replace(frame, complete=False, cause=Cause.INCOMPLETE, text=text, image=None)

    def _look_for_lost(self, now: float) -> None:
        for number in self._ids.overdue(now):
            self._counts["lost"] += 1
            frame = CameraFrame(0, 0, number, math.nan, None, session=self._session)
            if self._mode != "off":
                self._frames.put(self._without(frame, f"{self._driver.name}: frame {number} never came"))
        if self._mode == "off":
            self._answer(now - self._window - STRAGGLE, Cause.NO_FRAME, f"no frame within {1000 * self._window:g} ms of the trigger")

    def _answer(self, until: float, cause: Cause, text: str) -> None:
        """There is no frame for what was asked until then."""
        while self._asked and self._asked[0].at <= until:
            self._put(self._asked.popleft(), CameraFrame(0, 0, 0, 0.0, None, cause=cause, text=f"{self._driver.name}: {text}"))

    def _hand_out(self, frame: CameraFrame, now: float) -> None:
        if self._mode != "off":
            self._frames.put(frame)
            return
        moment = now if math.isnan(frame.host_time) else frame.host_time
        self._answer(moment - self._window, Cause.NO_FRAME, f"no frame within {1000 * self._window:g} ms of the trigger")
        asked = []
        while self._asked and self._asked[0].at <= moment:
            asked.append(self._asked.popleft())
        self._counts["unasked"] += not asked
        for one in asked:
            if len(asked) == 1:
                self._put(one, frame)
            else:
                self._put(one, CameraFrame(0, 0, frame.frame_id, 0.0, None, cause=Cause.UNMATCHED, session=self._session,
                                           text=f"{self._driver.name}: frame {frame.frame_id} may be of {len(asked)} parts"))

    def _put(self, asked: _Asked, frame: CameraFrame) -> None:
        encoder = asked.encoder if frame.encoder is None else frame.encoder
        self._frames.put(replace(frame, trigger=asked.trigger, part=asked.part, encoder=encoder, host_time=asked.at))

    def _count(self, now: float) -> None:
        """Ask the driver, from its own thread, what it counted."""
        if now - self._counted > COUNT_EVERY:
            self._figures, self._counted = self._driver.statistics(), now


def __getattr__(name: str) -> Any:
    """The old path of `Driver` and `Grabbed`, for drivers written before 0.2. It goes with 0.3."""
    if name in ("Driver", "Grabbed"):
        warnings.warn(f"edge.cameras.live.{name} goes with Lineside 0.3; write: from lineside import {name}", FutureWarning, stacklevel=2)
        return getattr(drivers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

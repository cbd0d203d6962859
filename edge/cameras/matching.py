"""Which frame is of which part: by the trigger that the frame was asked for, its frame id, or its encoder count; never by order of arrival.

A folder says which trigger a frame is of. A camera does not: its frames have an id that counts exposures, and perhaps the belt's encoder
count. The ids of one that the line itself triggers count the line's triggers, and its first frame says which one it is of; those of one
that a sensor triggers count the PLC's part ids.
Triggers come over the PLC's link, frames over the camera's: either may be first. A frame's time is that of its exposure and the time that
it took to come here, so it tells little by itself: a frame that takes longer than the next part looks like that part's. Where the line
triggers, what lies between the ids and the triggers is learned from a frame that knows its trigger, and from nothing else. Where a sensor
does, it is learned from a part that stood there alone, together with how late its frame was.
"""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge.cameras.section import Match
from edge.part.encoder import wrapped
from edge.part.events import Expose
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause

REACH = 0.5  # s that a frame is exposed and on its way, at most
EARLY = 0.002  # s that a frame may seem to be exposed before the trigger that caused it, by two clocks
UNANSWERED = 2.0  # s after which a part without a frame has its outcome anyway
KEPT = 256  # newest triggers that a frame may be of
IDS = 1 << 32  # part ids wrap there


@dataclass(eq=False)
class _Exposure:
    expose: Expose
    key: int  # what the frame ids count
    frame: CameraFrame | None = None  # that was taken for it
    unmatched: bool = False


@dataclass(frozen=True)
class Unmatched:
    """A part that no frame is known to be of, since more than one may be."""

    part: int
    trigger: int
    text: str


class Matcher:
    """Matches frames to parts. `expose` may be called from any thread, all else from one.

    Two frames that may be of one part, or two parts that one frame may be of, are all ``unmatched``. A frame without a part is dropped and
    counted: its trigger was refused, or never came.
    """

    def __init__(self, match: Match, *, window_counts: int = 0, window_s: float = 0.0,
                 now: Callable[[], float] = time.monotonic) -> None:
        """window_counts: a frame's encoder count is off from its trigger's by that at most. window_s: a frame is exposed so long after its
        trigger at most; less than half the time between two parts."""
        self._match, self._window_counts, self._window, self._now = match, window_counts, window_s, now
        self._inbox: queue.SimpleQueue[Expose] = queue.SimpleQueue()
        self._exposures: deque[_Exposure] = deque(maxlen=KEPT)
        self._held: list[tuple[float, CameraFrame]] = []  # until when, frame
        self._offset: int | None = None  # frame id - key
        self._lag: float | None = None  # s from a sensor's trigger to what a frame says its exposure was
        self._newest: int | None = None  # trigger
        self._session = 0  # of the camera
        self._skipped = 0  # triggers that the camera was not given
        self._ready: deque[CameraFrame] = deque()
        self._unmatched: deque[Unmatched] = deque()
        self._void: set[int] = set()  # triggers
        self._remarks: deque[str] = deque(maxlen=1)
        self.without_part = 0
        self.unsettled = False  # the camera has to begin anew; whoever lets it resets this

    def expose(self, expose: Expose) -> None:
        """A part was triggered."""
        self._inbox.put(expose)

    @property
    def holds(self) -> bool:
        """Whether a frame waits for its trigger."""
        return bool(self._held)

    def frame(self, frame: CameraFrame) -> None:
        """A frame has come."""
        if frame.trigger:
            if not frame.exposed:
                self._skip(frame.trigger)
            else:
                self._learn(frame)
            self._ready.append(frame)
            return
        self._hear()
        if frame.session < self._session:
            self.without_part += 1
            return
        self._begin(frame.session)
        if not self._try(frame):
            self._held.append((self._now() + self._window, frame))

    def take(self) -> CameraFrame | None:
        """The next frame whose part is known: with ``trigger`` and ``part``, and with the trigger's moment as its own."""
        self._hear()
        while self._ready:
            frame = self._ready.popleft()
            if frame.trigger not in self._void:
                return frame
        return None

    def unmatched(self) -> Unmatched | None:
        """The next part that cannot be matched, once."""
        return self._unmatched.popleft() if self._unmatched else None

    def remark(self) -> str | None:
        """Why the frame that was dropped last had no part, once."""
        return self._remarks.popleft() if self._remarks else None

    def void(self, trigger: int) -> bool:
        """Whether the frame that was taken for a trigger may be another part's, as turned out since."""
        return trigger in self._void

    def _hear(self) -> None:
        while not self._inbox.empty():
            expose = self._inbox.get_nowait()
            if self._newest is not None:  # triggers in between were never exposed: a part id that came twice, an encoder that cannot be
                self._skipped += max(0, expose.trigger - self._newest - 1)
            self._newest = expose.trigger
            exposure = _Exposure(expose, expose.trigger - self._skipped if self._match == "trigger" else expose.part)
            if len(self._exposures) == KEPT:
                self._void.discard(self._exposures[0].expose.trigger)
            self._exposures.append(exposure)
            if self._match == "encoder":
                self._look_back(exposure)
            self._held = [(until, frame) for until, frame in self._held if not self._try(frame)]
        now = self._now()
        for until, frame in self._held:
            if until <= now:
                self._give_up(frame)
        self._held = [(until, frame) for until, frame in self._held if until > now]

    def _try(self, frame: CameraFrame) -> bool:
        """Find the frame's part. False: it is not known yet."""
        return self._by_encoder(frame) if self._match == "encoder" else self._by_id(frame)

    def _skip(self, trigger: int) -> None:
        """The camera was not given a trigger, and does not count it."""
        self._hear()
        self._skipped += 1
        for exposure in list(self._exposures):
            if exposure.expose.trigger == trigger:
                self._exposures.remove(exposure)
            elif exposure.expose.trigger > trigger:
                exposure.key -= 1

    def _begin(self, session: int) -> None:
        if session != self._session:
            self._session, self._offset = session, None

    def _learn(self, frame: CameraFrame) -> None:
        """A frame that knows its trigger says what lies between the ids behind it and the triggers."""
        self._hear()
        if frame.cause is Cause.UNMATCHED:
            return
        self._begin(frame.session)
        exposure = next((exposure for exposure in self._exposures if exposure.expose.trigger == frame.trigger), None)
        if exposure is not None:
            exposure.frame = frame
            self._offset = (frame.frame_id - exposure.key) % IDS

    def _give(self, frame: CameraFrame, exposure: _Exposure) -> None:
        exposure.frame = frame
        expose = exposure.expose
        self._ready.append(replace(frame, trigger=expose.trigger, part=expose.part, host_time=expose.at))

    def _lose(self, exposures: list[_Exposure], text: str) -> None:
        for exposure in exposures:
            if not exposure.unmatched:
                exposure.unmatched = True
                self._void.add(exposure.expose.trigger)
                self._unmatched.append(Unmatched(exposure.expose.part, exposure.expose.trigger, f"part {exposure.expose.part}: {text}"))

    # By encoder: the one trigger within the window is the frame's, if the frame is the only one within the trigger's.

    def _near(self, frame: CameraFrame, exposure: _Exposure) -> bool:
        counts = exposure.expose.encoder
        return frame.encoder is not None and counts is not None and abs(wrapped(frame.encoder - counts)) <= self._window_counts

    def _by_encoder(self, frame: CameraFrame) -> bool:
        near = [exposure for exposure in self._exposures if self._near(frame, exposure)]
        if not near:
            return False
        if len(near) > 1:
            self._lose(near, f"a frame at encoder count {frame.encoder} may be of {len(near)} parts")
        elif near[0].frame is None and not near[0].unmatched:
            self._give(frame, near[0])
            return True
        elif near[0].frame is not None and near[0].frame.frame_id != frame.frame_id:  # else the camera delivered it twice
            self._lose(near, f"frames {near[0].frame.frame_id} and {frame.frame_id} may both be of it")
        self.without_part += 1
        return True

    def _look_back(self, new: _Exposure) -> None:
        """A frame that was taken for another part may be of this one."""
        for exposure in self._exposures:
            if exposure is not new and exposure.frame is not None and self._near(exposure.frame, new):
                self._lose([exposure, new], f"frame {exposure.frame.frame_id} may be of parts {exposure.expose.part} and {new.expose.part}")

    # By frame id: ids and keys count the same exposures. The first frame says by its time what lies between them, each further one is
    # held to its time, and a contradiction lets that begin anew.

    def _in_time(self, frame: CameraFrame, exposure: _Exposure) -> bool:
        after = frame.host_time - exposure.expose.at
        return -EARLY <= after <= self._window if self._match == "trigger" else abs(after - (self._lag or 0.0)) <= self._window

    def _by_id(self, frame: CameraFrame) -> bool:
        if self._offset is None:
            if self._match == "trigger" or self._lag is None:
                return False  # see _learn, _alone
            near = [exposure for exposure in self._exposures if self._in_time(frame, exposure)]
            if not near:
                return False
            if len(near) > 1 or near[0].frame is not None or near[0].unmatched:
                self._lose(near, f"frame {frame.frame_id} came within window_ms of it, and not of it alone")
                self.without_part += 1
            else:
                self._offset = (frame.frame_id - near[0].key) % IDS
                self._give(frame, near[0])
            return True
        key = (frame.frame_id - self._offset) % IDS
        exposure = next((exposure for exposure in reversed(self._exposures) if exposure.key % IDS == key), None)
        if exposure is None:
            return False
        after = self._after(exposure)
        if not math.isnan(frame.host_time) and not self._in_time(frame, exposure):
            self._contradicted(frame, [exposure])
        elif self._match == "trigger" and after is not None and after.expose.at <= frame.host_time:
            self._contradicted(frame, [exposure, after])  # the camera may have ignored a trigger, and counted none
        elif exposure.frame is None and not exposure.unmatched:
            self._give(frame, exposure)
        else:  # the camera delivered it twice
            self.without_part += 1
        return True

    def _after(self, exposure: _Exposure) -> _Exposure | None:
        """The trigger behind one."""
        later = [other for other in self._exposures if other.expose.trigger > exposure.expose.trigger]
        return min(later, key=lambda other: other.expose.trigger, default=None)

    def _alone(self, frame: CameraFrame) -> bool:
        """Whether there was just one part that a frame can be of, however long it took, and it took no longer than the window.

        A shorter look back would do where no frame takes long, which is not known yet; a longer window would take the frame of a trigger
        that was refused for that of a part whose frame was lost.
        """
        near = [exposure for exposure in self._exposures if -self._window <= frame.host_time - exposure.expose.at <= REACH]
        if len(near) != 1 or near[0].frame is not None or near[0].unmatched or not self._in_time(frame, near[0]):
            return False
        self._lag = frame.host_time - near[0].expose.at
        self._offset = (frame.frame_id - near[0].key) % IDS
        self._give(frame, near[0])
        return True

    def _contradicted(self, frame: CameraFrame, exposures: list[_Exposure]) -> None:
        self._offset = None
        if self._match == "trigger":
            self.unsettled = True
            since = self._now() - UNANSWERED
            exposures = [*exposures, *(other for other in self._exposures if other.frame is None and other.expose.at > since)]
        near = [exposure for exposure in self._exposures if self._in_time(frame, exposure)]
        self._lose([*exposures, *near], f"frame {frame.frame_id} is of another part by its id than by its time")
        self.without_part += 1

    def _give_up(self, frame: CameraFrame) -> None:
        """No part has come for a frame."""
        if self._match == "frame-id" and self._offset is None and self._lag is None:
            if not self._alone(frame):
                self.without_part += 1
                self._remarks.append(f"frame {frame.frame_id} may be of more than one part, or of none: which frames are of which parts is "
                                     f"not known before a part comes with nothing for {REACH:g} s before it, and its frame within "
                                     f"window_ms ({1000 * self._window:g})")
            return
        if self._match != "encoder" and self._offset is not None and any(
                self._in_time(frame, exposure) and exposure.frame is None for exposure in self._exposures):
            self._contradicted(frame, [])
            return
        self.without_part += 1
        after = [frame.host_time - exposure.expose.at for exposure in self._exposures if exposure.frame is None]
        if self._match != "encoder" and after and not math.isnan(nearest := min(after, key=abs)):
            self._remarks.append(f"frame {frame.frame_id} is of no part: it was exposed {1000 * nearest:.0f} ms after the nearest trigger, "
                                 f"and window_ms under [camera] is {1000 * self._window:g}")

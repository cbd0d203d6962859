"""Matching frames to parts: which part does a frame show?

Triggers and frames reach the line over two separate channels. The PLC's link brings the triggers ("part 17 is in front
of the camera"), and the camera's connection brings the frames. Either can come first and either can be lost, so the
order of arrival proves nothing. Time alone proves little: a frame is exposed after its trigger and takes a while to
arrive, so a slow frame of part 17 looks just like a fast frame of part 18. Ejecting the wrong part is the worst mistake
a line can make. Therefore a frame that may show more than one part is given to none of them, and all of those parts
become UNINSPECTED (`unmatched`).

There are three ways of matching, set by `match` under [camera]:

- ``trigger``: the line triggers the camera. The camera numbers its frames, and the line numbers the triggers that it
  gave. The first frame of a connection has only one possible trigger, which `edge.cameras.live` makes sure of. The
  offset between its id and the number of its trigger holds for all later frames of that connection.
- ``frame-id``: a sensor triggers both the PLC and the camera. The camera numbers its frames, and the PLC its parts. The
  offset between the two is learned from an isolated part: the only one that the frame can show, however long it took.
  How long that frame took is learned with it, and later frames are expected after the same delay.
- ``encoder``: each frame carries the encoder count of the belt. It shows the one part that was triggered within
  ``window_counts`` of that count.

With the first two, time serves as a check. If a frame's id and its time point to different parts, neither part gets the
frame, and the offset is learned again.

Some cameras, such as `folder`, say which trigger each frame belongs to. Their frames pass through unchanged.
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

LONGEST_DELAY = 0.5  # s from a trigger until its frame is here, at most
CLOCK_ERROR = 0.002  # s that a frame may seem to be exposed before its trigger, since each has a clock of its own
DECIDED_AFTER = 2.0  # s after its trigger, a part without a frame has its outcome anyway
KEPT = 256  # newest triggers that a frame is compared with
ID_CYCLE = 1 << 32  # part ids start again at 0 there


@dataclass(eq=False)
class _Trigger:
    """A part that was triggered, and the frame that it was given."""

    event: Expose
    count: int  # its number in the sequence that the frame ids count: triggers given to the camera, or parts
    frame: CameraFrame | None = None
    unmatched: bool = False


@dataclass(frozen=True)
class Unmatched:
    """A part that gets no frame, because it is not certain which frame shows it."""

    part: int
    trigger: int
    text: str


class Matcher:
    """Matches the frames of one camera to parts. Any thread may call `expose`; only one thread may call the rest.

    If two frames may show one part, or one frame may show two parts, all of those parts become `unmatched`. A frame
    that shows no known part is dropped and counted: the PLC's trigger was refused or got lost.
    """

    def __init__(self, match: Match, *, window_counts: int = 0, window_s: float = 0.0,
                 now: Callable[[], float] = time.monotonic) -> None:
        """window_counts: largest distance between the encoder counts of a frame and its trigger. window_s: longest time
        from a trigger to its exposure, less than half the time between two parts."""
        self._match, self._window_counts, self._window, self._now = match, window_counts, window_s, now
        self._new_triggers: queue.SimpleQueue[Expose] = queue.SimpleQueue()
        self._triggers: deque[_Trigger] = deque(maxlen=KEPT)
        self._waiting: list[tuple[float, CameraFrame]] = []  # frames whose trigger may still come, and until when
        self._offset: int | None = None  # frame id - trigger's count; None until it is learned
        self._delay: float | None = None  # s from a sensor's trigger to its frame's time; None until it is learned
        self._newest: int | None = None  # the newest trigger
        self._connection = 0  # of the camera
        self._skipped = 0  # triggers that the camera was not given
        self._matched: deque[CameraFrame] = deque()
        self._unmatched: deque[Unmatched] = deque()
        self._void: set[int] = set()  # triggers whose frame must not be used
        self._remarks: deque[str] = deque(maxlen=1)
        self.without_part = 0
        self.unsettled = False  # the camera must pause (see `Camera.settle`); the caller resets this

    def expose(self, expose: Expose) -> None:
        """A part was triggered."""
        self._new_triggers.put(expose)

    @property
    def holds(self) -> bool:
        """Whether a frame is waiting for its trigger."""
        return bool(self._waiting)

    def frame(self, frame: CameraFrame) -> None:
        """A frame has arrived."""
        if frame.trigger:
            if not frame.exposed:
                self._skip_trigger(frame.trigger)
            else:
                self._learn_offset(frame)
            self._matched.append(frame)
            return
        self._update()
        if frame.connection < self._connection:
            self.without_part += 1
            return
        self._use_connection(frame.connection)
        if not self._match_frame(frame):
            self._waiting.append((self._now() + self._window, frame))

    def take(self) -> CameraFrame | None:
        """The next matched frame, or None. Its ``trigger``, ``part`` and ``host_time`` are those of its trigger."""
        self._update()
        while self._matched:
            frame = self._matched.popleft()
            if frame.trigger not in self._void:
                return frame
        return None

    def unmatched(self) -> Unmatched | None:
        """The next part that cannot be matched, or None. Each part is returned once."""
        return self._unmatched.popleft() if self._unmatched else None

    def remark(self) -> str | None:
        """Why the last dropped frame shows no part, or None. Each reason is returned once."""
        return self._remarks.popleft() if self._remarks else None

    def void(self, trigger: int) -> bool:
        """Whether the frame that was given to this trigger has since turned out to be doubtful."""
        return trigger in self._void

    def _update(self) -> None:
        """Take in new triggers, match waiting frames against them, and give up on frames that waited too long."""
        while not self._new_triggers.empty():
            event = self._new_triggers.get_nowait()
            if self._newest is not None:
                # The line never exposed those in between: a repeated part id, or an impossible encoder count.
                self._skipped += max(0, event.trigger - self._newest - 1)
            self._newest = event.trigger
            trigger = _Trigger(event, event.trigger - self._skipped if self._match == "trigger" else event.part)
            if len(self._triggers) == KEPT:
                self._void.discard(self._triggers[0].event.trigger)
            self._triggers.append(trigger)
            if self._match == "encoder":
                self._recheck_matches(trigger)
            self._waiting = [(until, frame) for until, frame in self._waiting if not self._match_frame(frame)]
        now = self._now()
        for until, frame in self._waiting:
            if until <= now:
                self._give_up(frame)
        self._waiting = [(until, frame) for until, frame in self._waiting if until > now]

    def _match_frame(self, frame: CameraFrame) -> bool:
        """Find the frame's part. Returns False if its trigger may still come."""
        return self._match_by_encoder(frame) if self._match == "encoder" else self._match_by_id(frame)

    def _assign(self, frame: CameraFrame, trigger: _Trigger) -> None:
        trigger.frame = frame
        event = trigger.event
        self._matched.append(replace(frame, trigger=event.trigger, part=event.part, host_time=event.at))

    def _mark_unmatched(self, triggers: list[_Trigger], text: str) -> None:
        for trigger in triggers:
            if not trigger.unmatched:
                trigger.unmatched = True
                event = trigger.event
                self._void.add(event.trigger)
                self._unmatched.append(Unmatched(event.part, event.trigger, f"part {event.part}: {text}"))

    # Encoder. The frame belongs to the trigger within the window, if there is just one and it has no other frame.

    def _is_near(self, frame: CameraFrame, trigger: _Trigger) -> bool:
        counts = trigger.event.encoder
        if frame.encoder is None or counts is None:
            return False
        return abs(wrapped(frame.encoder - counts)) <= self._window_counts

    def _match_by_encoder(self, frame: CameraFrame) -> bool:
        near = [trigger for trigger in self._triggers if self._is_near(frame, trigger)]
        if not near:
            return False
        first = near[0]
        if len(near) > 1:
            self._mark_unmatched(near, f"the frame at encoder count {frame.encoder} may show any of {len(near)} parts")
        elif first.frame is None and not first.unmatched:
            self._assign(frame, first)
            return True
        elif first.frame is not None and first.frame.frame_id != frame.frame_id:  # not the same frame delivered twice
            self._mark_unmatched(near, f"frames {first.frame.frame_id} and {frame.frame_id} may both show it")
        self.without_part += 1
        return True

    def _recheck_matches(self, new: _Trigger) -> None:
        """A frame that was given to another part may show the part of this new trigger."""
        for trigger in self._triggers:
            frame = trigger.frame
            if trigger is not new and frame is not None and self._is_near(frame, new):
                text = f"frame {frame.frame_id} may show part {trigger.event.part} or part {new.event.part}"
                self._mark_unmatched([trigger, new], text)

    # Frame ids. Ids and trigger counts number the same exposures, so their difference (the offset) stays the same.

    def _use_connection(self, connection: int) -> None:
        if connection != self._connection:
            self._connection, self._offset = connection, None

    def _skip_trigger(self, number: int) -> None:
        """The camera was not given this trigger and does not count it, so later triggers move up by one."""
        self._update()
        self._skipped += 1
        for trigger in list(self._triggers):
            if trigger.event.trigger == number:
                self._triggers.remove(trigger)
            elif trigger.event.trigger > number:
                trigger.count -= 1

    def _learn_offset(self, frame: CameraFrame) -> None:
        """Learn the offset from a frame whose trigger is known."""
        self._update()
        if frame.cause is Cause.UNMATCHED:
            return
        self._use_connection(frame.connection)
        trigger = next((trigger for trigger in self._triggers if trigger.event.trigger == frame.trigger), None)
        if trigger is not None:
            trigger.frame = frame
            self._offset = (frame.frame_id - trigger.count) % ID_CYCLE

    def _is_in_time(self, frame: CameraFrame, trigger: _Trigger) -> bool:
        after = frame.host_time - trigger.event.at
        if self._match == "trigger":
            return -CLOCK_ERROR <= after <= self._window
        return abs(after - (self._delay or 0.0)) <= self._window

    def _match_by_id(self, frame: CameraFrame) -> bool:
        if self._offset is None:
            return self._match_first(frame)
        count = (frame.frame_id - self._offset) % ID_CYCLE
        trigger = next((trigger for trigger in reversed(self._triggers) if trigger.count % ID_CYCLE == count), None)
        if trigger is None:
            return False
        following = self._following(trigger)
        if not math.isnan(frame.host_time) and not self._is_in_time(frame, trigger):
            self._handle_contradiction(frame, [trigger])
        elif self._match == "trigger" and following is not None and following.event.at <= frame.host_time:
            # The camera may have ignored a trigger without counting it.
            self._handle_contradiction(frame, [trigger, following])
        elif trigger.frame is None and not trigger.unmatched:
            self._assign(frame, trigger)
        else:  # the camera delivered it twice
            self.without_part += 1
        return True

    def _match_first(self, frame: CameraFrame) -> bool:
        """Match a sensor's frame by its time and learn the offset from it. The delay must be known by then."""
        if self._match == "trigger" or self._delay is None:
            return False
        near = [trigger for trigger in self._triggers if self._is_in_time(frame, trigger)]
        if not near:
            return False
        if len(near) > 1 or near[0].frame is not None or near[0].unmatched:
            text = f"frame {frame.frame_id} came within window_ms, but so did another part or frame"
            self._mark_unmatched(near, text)
            self.without_part += 1
        else:
            self._offset = (frame.frame_id - near[0].count) % ID_CYCLE
            self._assign(frame, near[0])
        return True

    def _following(self, trigger: _Trigger) -> _Trigger | None:
        """The trigger after this one."""
        later = [other for other in self._triggers if other.event.trigger > trigger.event.trigger]
        return min(later, key=lambda other: other.event.trigger, default=None)

    def _match_isolated(self, frame: CameraFrame) -> bool:
        """Match a sensor's frame if only one part can have caused it, and learn the offset and the delay from it.

        `LONGEST_DELAY` must stay this long, since it is not known yet how long a frame takes. And the frame must have
        come within the window: a later one may belong to a refused trigger, after the frame of this part was lost.
        """
        near = [trigger for trigger in self._triggers
                if -self._window <= frame.host_time - trigger.event.at <= LONGEST_DELAY]
        if len(near) != 1 or near[0].frame is not None or near[0].unmatched or not self._is_in_time(frame, near[0]):
            return False
        self._delay = frame.host_time - near[0].event.at
        self._offset = (frame.frame_id - near[0].count) % ID_CYCLE
        self._assign(frame, near[0])
        return True

    def _handle_contradiction(self, frame: CameraFrame, triggers: list[_Trigger]) -> None:
        """The frame's id and its time point to different parts: use it for none of them, and learn the offset again."""
        self._offset = None
        if self._match == "trigger":
            self.unsettled = True
            since = self._now() - DECIDED_AFTER
            triggers = triggers + [other for other in self._triggers if other.frame is None and other.event.at > since]
        near = [trigger for trigger in self._triggers if self._is_in_time(frame, trigger)]
        self._mark_unmatched(triggers + near, f"frame {frame.frame_id} shows one part by its id, another by its time")
        self.without_part += 1

    def _give_up(self, frame: CameraFrame) -> None:
        """No trigger came for a frame."""
        if self._match == "frame-id" and self._offset is None and self._delay is None:
            if not self._match_isolated(frame):
                self.without_part += 1
                self._remarks.append(
                    f"frame {frame.frame_id} may show more than one part, or none. Matching starts with the first part "
                    f"that has no other part in the {LONGEST_DELAY:g} s before it and whose frame comes within "
                    f"window_ms ({1000 * self._window:g})")
            return
        if self._match != "encoder" and self._offset is not None and any(
                self._is_in_time(frame, trigger) and trigger.frame is None for trigger in self._triggers):
            self._handle_contradiction(frame, [])
            return
        self.without_part += 1
        after = [frame.host_time - trigger.event.at for trigger in self._triggers if trigger.frame is None]
        if self._match != "encoder" and after and not math.isnan(nearest := min(after, key=abs)):
            self._remarks.append(
                f"frame {frame.frame_id} shows no part: it was exposed {1000 * nearest:.0f} ms after the nearest "
                f"trigger, but window_ms under [camera] is {1000 * self._window:g}")

"""The line's cameras, and which frame belongs to which part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from edge.cameras.camera import Camera
from edge.cameras.matching import Matcher, Unmatched
from edge.cameras.section import CameraSection
from edge.part.events import Expose
from edge.part.frame import CameraFrame
from edge.record.recorder import NullRecorder
from edge.run.faults import Faults

FRAME_WAIT = 0.05  # s for a frame, before the line looks at whether it has ended
TRIGGER_WAIT = 0.002  # s for a frame while an earlier one waits for its trigger
CAMERA_RETRY = 0.05  # s until a camera that failed is asked again


class MatchedFrames:
    """Delivers frames whose part is known.

    `expose` is called by the thread of line control's client, all else by one thread.
    """

    def __init__(self, camera: Camera, sections: Sequence[CameraSection], recorder: NullRecorder,
                 tell: Callable[[str], None]) -> None:
        """camera: open, all cameras of the line as one.

        sections: what the line file says about each. tell: tells the operator.
        """
        self._camera, self._sections, self._recorder, self._tell = camera, sections, recorder, tell
        self._matchers = [Matcher(section.match, window_counts=section.window_counts, window_s=section.window_ms / 1000)
                          for section in sections]

    def expose(self, expose: Expose) -> None:
        """A part was triggered: let every camera take a frame. Returns at once."""
        for section, matcher in zip(self._sections, self._matchers, strict=True):
            if not section.frames_name_triggers:
                matcher.expose(expose)
        self._recorder.exposed(expose)
        self._camera.expose(expose.trigger, expose.part, expose.encoder, expose.at)

    def next(self, busy: bool, faults: Faults) -> CameraFrame | None:
        """The next frame whose part is known, if one comes soon; at once where the caller is ``busy``."""
        matched = next((frame for matcher in self._matchers if (frame := matcher.take()) is not None), None)
        if matched is not None:
            return matched
        holds = any(matcher.holds for matcher in self._matchers)
        frame = self._delivered(0.0 if busy else TRIGGER_WAIT if holds else FRAME_WAIT, faults)
        if frame is None:
            return None
        self._recorder.frame(frame)
        self._matchers[frame.camera].frame(frame)
        return self._matchers[frame.camera].take()

    def _delivered(self, timeout: float, faults: Faults) -> CameraFrame | None:
        try:
            return self._camera.next(timeout)
        except Exception as error:  # the parts that it was exposed for end as late
            faults.camera(f"the camera failed: {error}")
            time.sleep(CAMERA_RETRY)
            return None

    def given_up(self) -> Iterator[Unmatched]:
        """Parts that no frame can be matched to.

        Also realigns the cameras and tells the operator what matching noticed.
        """
        for number, matcher in enumerate(self._matchers):
            if matcher.unsettled:
                matcher.unsettled = False
                self._camera.settle(number)
            if (remark := matcher.remark()) is not None:
                self._tell(remark)
            while (lost := matcher.unmatched()) is not None:
                yield lost

    def void(self, frame: CameraFrame) -> bool:
        """Whether the frame's part was given up after the frame was matched."""
        return self._matchers[frame.camera].void(frame.trigger)

    def counters(self) -> dict[str, int]:
        """What became of frames that no part got, by name."""
        return {"without_part": sum(matcher.without_part for matcher in self._matchers), **self._camera.counters()}

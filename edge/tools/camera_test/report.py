"""What the frames of a camera say about it: rate, jitter, losses, times after the trigger, exposure. `trial` takes them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from edge.part.frame import CameraFrame
from edge.tools.camera_test.album import Look

MARGIN = 1.5  # of the recommended window over the longest time that was seen


@dataclass(frozen=True)
class Taken:
    """What is kept of a frame that came."""

    arrival: float  # s of time.monotonic
    frame: CameraFrame  # without its image
    whole: bool  # whether it had one


@dataclass(frozen=True)
class Spread:
    """Times in ms."""

    p50: float
    p99: float
    max: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread | None:
        """Of times in s, None where there are none."""
        if not seconds:
            return None
        p50, p99, top = np.quantile(np.asarray(seconds) * 1000, [0.5, 0.99, 1])
        return Spread(round(float(p50), 3), round(float(p99), 3), round(float(top), 3))


@dataclass(frozen=True)
class CameraReport:
    """What was found out about one camera. None: there was nothing to find it out from."""

    camera: int  # from 1
    kind: str
    name: str
    triggers: int | None  # None: the line does not trigger it
    frames: int  # whole ones
    measured: int  # of them, looked at for exposure and focus
    seconds: float
    rate: float | None  # frames a second
    interval_ms: float | None  # median
    jitter_ms: Spread | None  # how far an interval is from the median one
    device_times: bool  # whether the intervals are by the camera's clock
    trigger_to_frame_ms: Spread | None  # until the frame is here
    trigger_to_exposure_ms: Spread | None  # until its own moment, which `window_ms` is held against
    window_ms: float | None  # recommended
    gaps: int  # frames that never came, by their ids
    incomplete: int
    unanswered: int  # triggers that nothing came for
    overtaken: int
    doubled: int
    dropped: int  # that nobody took in time
    disconnects: int
    reconnects: int
    clipped: Mapping[str, float]  # shares of pixels at 0 (low) and at 255 (high), mean and worst image
    level: float | None  # mean grey level
    focus: Mapping[str, float]  # see `focus_measure`: median, lowest, highest
    exposure_us: float | None  # as the camera says, median
    counters: Mapping[str, int]  # all of the camera's and its driver's
    errors: Sequence[str] = field(default_factory=tuple)  # what was said of losses, each once
    advice: Sequence[str] = field(default_factory=tuple)

    @property
    def fails(self) -> bool:
        """Whether a line would miss frames."""
        return not self.frames or self.gaps + self.incomplete + self.unanswered + self.dropped + self.disconnects > 0

    def as_json(self) -> dict[str, Any]:
        """All of it, by the names above."""
        def plain(value: Any) -> Any:
            return vars(value) if isinstance(value, Spread) else dict(value) if isinstance(value, Mapping) else (
                list(value) if isinstance(value, (tuple, list)) else value)

        return {name: plain(value) for name, value in vars(self).items()}


def intervals(taken: Sequence[Taken]) -> list[tuple[float, float]]:
    """Arrival of a frame and its distance from the one before it, both in s, for frames with no other between them.

    The distance is by the camera's clock where it has one, else by arrival.
    """
    ordered = sorted((one for one in taken if one.whole), key=lambda one: (one.frame.connection, one.frame.frame_id))
    found = []
    for before, after in pairwise(ordered):
        if before.frame.connection != after.frame.connection or after.frame.frame_id - before.frame.frame_id != 1:
            continue
        first, second = before.frame.device_time, after.frame.device_time
        apart = after.arrival - before.arrival if first is None or second is None else second - first
        found.append((after.arrival, apart))
    return found


def answers(taken: Sequence[Taken], triggers: Sequence[float]) -> list[tuple[float, Taken]]:
    """The trigger of each whole frame, in s of time.monotonic. ``triggers``: in order, the first one is number 1.

    A frame that knows its trigger says it. Otherwise the first frame of a session is that of the newest trigger before it; the others lie
    as long after theirs, by the camera's clock, or without one are counted from there by their ids.
    """
    refused = {one.frame.trigger for one in taken if not one.frame.exposed}
    given = [at for number, at in enumerate(triggers, 1) if number not in refused]
    found: list[tuple[float, Taken]] = []
    first: dict[int, tuple[int, int, float]] = {}  # session: place in `given`, frame id, delay in s
    for one in taken:
        frame = one.frame
        if not one.whole:
            continue
        if frame.trigger:
            found.append((triggers[frame.trigger - 1], one))
            continue
        moment = one.arrival if math.isnan(frame.host_time) else frame.host_time
        if frame.connection not in first:
            place = bisect.bisect_right(given, moment) - 1
            if place >= 0:
                first[frame.connection] = place, frame.frame_id, moment - given[place]
        elif frame.device_time is None:
            place = first[frame.connection][0] + frame.frame_id - first[frame.connection][1]
        else:
            place = _nearest(given, moment - first[frame.connection][2])
        if 0 <= place < len(given) and given[place] <= one.arrival:
            found.append((given[place], one))
    return found


def _nearest(moments: Sequence[float], moment: float) -> int:
    after = bisect.bisect_left(moments, moment)
    return min((place for place in (after - 1, after) if 0 <= place < len(moments)), key=lambda place: abs(moments[place] - moment),
               default=-1)


def window(longest: float) -> float:
    """``window_ms`` for a longest time in ms between a trigger and its exposure."""
    return max(5.0, 5.0 * math.ceil(MARGIN * longest / 5))


def report_camera(number: int, kind: str, name: str, taken: Sequence[Taken], triggers: Sequence[float] | None, looks: Sequence[Look],
                  counters: Mapping[str, int], seconds: float, errors: Sequence[str] = ()) -> CameraReport:
    """Put together what is known of a camera, without advice. ``triggers``: s of time.monotonic, None where the line gives none.

    The first trigger is given alone, to see which frame is its answer: what lies between it and the second one is left out of the rate.
    """
    whole = [one for one in taken if one.whole]
    steady = whole if triggers is None else whole[1:]
    apart = intervals(steady)
    middle = float(np.median([interval for _, interval in apart])) if apart else None
    answered = answers(taken, triggers) if triggers is not None else []
    after = Spread.of([max(0.0, one.frame.host_time - at) for at, one in answered if not math.isnan(one.frame.host_time)])
    longest = after.max if after is not None else None
    if triggers is None and apart:  # the next frame may be a whole interval away
        longest = 1000 * max(interval for _, interval in apart)
    incomplete = counters.get("incomplete", sum(not one.whole and one.frame.exposed for one in taken))
    gaps, dropped = counters.get("lost", 0), counters.get("dropped", 0)
    exposures = [one.frame.exposure_us for one in whole if one.frame.exposure_us is not None]
    span = steady[-1].arrival - steady[0].arrival if len(steady) > 1 else 0.0
    return CameraReport(
        camera=number, kind=kind, name=name, triggers=None if triggers is None else len(triggers), frames=len(whole), measured=len(looks),
        seconds=round(seconds, 3), rate=round((len(steady) - 1) / span, 3) if span > 0 else None,
        interval_ms=None if middle is None else round(1000 * middle, 3),
        jitter_ms=None if middle is None else Spread.of([abs(interval - middle) for _, interval in apart]),
        device_times=bool(steady) and all(one.frame.device_time is not None for one in steady),
        trigger_to_frame_ms=Spread.of([one.arrival - at for at, one in answered]), trigger_to_exposure_ms=after,
        window_ms=None if longest is None else window(longest), gaps=gaps, incomplete=incomplete,
        unanswered=0 if triggers is None else max(0, len(triggers) - len(whole) - incomplete - gaps - dropped),
        overtaken=counters.get("overtaken", 0), doubled=counters.get("doubled", 0), dropped=dropped,
        disconnects=counters.get("disconnects", 0), reconnects=counters.get("reconnects", 0), clipped=_clipped(looks),
        level=round(float(np.mean([look.level for look in looks])), 2) if looks else None, focus=_focus([look.focus for look in looks]),
        exposure_us=round(float(np.median(exposures)), 3) if exposures else None, counters=dict(counters), errors=tuple(errors))


def _clipped(looks: Sequence[Look]) -> dict[str, float]:
    shares = {"low": [look.low for look in looks] or [0.0], "high": [look.high for look in looks] or [0.0]}
    mean = {end: round(float(np.mean(values)), 6) for end, values in shares.items()}
    return {**mean, **{f"{end}_worst": round(max(values), 6) for end, values in shares.items()}}


def _focus(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {name: float(f"{value:.4g}") for name, value in (("median", np.median(values)), ("lowest", min(values)),
                                                            ("highest", max(values)))}

"""Computes a camera's figures from its frames: rate, jitter, losses, delays and exposure. `trial` takes the frames."""

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

MARGIN = 1.5  # recommended window divided by the longest delay


@dataclass(frozen=True)
class Taken:
    """A frame that came, without its image."""

    arrival: float  # s of time.monotonic
    frame: CameraFrame
    whole: bool  # whether it had an image


@dataclass(frozen=True)
class Spread:
    """Percentiles of times, in ms."""

    p50: float
    p99: float
    max: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread | None:
        """The percentiles of times in s, or None if there are none."""
        if not seconds:
            return None
        p50, p99, top = np.quantile(np.asarray(seconds) * 1000, [0.5, 0.99, 1])
        return Spread(round(float(p50), 3), round(float(p99), 3), round(float(top), 3))


@dataclass(frozen=True)
class CameraReport:
    """The results of one camera. None: there was nothing to compute it from."""

    camera: int  # from 1
    kind: str
    name: str
    triggers: int | None  # None: the line does not trigger it
    frames: int  # complete ones
    measured: int  # how many of them were measured for exposure and focus
    seconds: float
    rate: float | None  # frames per second
    interval_ms: float | None  # median
    jitter_ms: Spread | None  # deviation of the intervals from the median
    device_times: bool  # whether the intervals are measured by the camera's clock
    trigger_to_frame_ms: Spread | None  # until the frame arrives
    trigger_to_exposure_ms: Spread | None  # until the frame's exposure time, which is compared with `window_ms`
    window_ms: float | None  # recommended
    gaps: int  # frames that never came, as their ids show
    incomplete: int
    unanswered: int  # triggers without any answer
    overtaken: int
    doubled: int
    dropped: int  # not taken in time
    disconnects: int
    reconnects: int
    clipped: Mapping[str, float]  # shares of pixels at 0 (low) and at 255 (high), mean and worst image
    level: float | None  # mean grey level
    focus: Mapping[str, float]  # median, lowest, highest; see `focus_measure`
    exposure_us: float | None  # median, as the camera reports it
    counters: Mapping[str, int]  # all counts of the camera and its driver
    errors: Sequence[str] = field(default_factory=tuple)  # messages about losses, each once
    advice: Sequence[str] = field(default_factory=tuple)

    @property
    def fails(self) -> bool:
        """Whether a line would miss frames."""
        return not self.frames or self.gaps + self.incomplete + self.unanswered + self.dropped + self.disconnects > 0

    def as_json(self) -> dict[str, Any]:
        """All fields, by the names above."""
        def plain(value: Any) -> Any:
            if isinstance(value, Spread):
                return vars(value)
            if isinstance(value, Mapping):
                return dict(value)
            return list(value) if isinstance(value, tuple | list) else value

        return {name: plain(value) for name, value in vars(self).items()}


def intervals(taken: Sequence[Taken]) -> list[tuple[float, float]]:
    """For each pair of successive frame ids: the arrival of the second frame and the interval between them, both in s.

    The interval is measured by the camera's clock if it has one, otherwise by arrival.
    """
    ordered = sorted((one for one in taken if one.whole), key=lambda one: (one.frame.connection, one.frame.frame_id))
    found = []
    for before, after in pairwise(ordered):
        if before.frame.connection != after.frame.connection or after.frame.frame_id - before.frame.frame_id != 1:
            continue
        first, second = before.frame.device_time, after.frame.device_time
        interval = after.arrival - before.arrival if first is None or second is None else second - first
        found.append((after.arrival, interval))
    return found


def answers(taken: Sequence[Taken], triggers: Sequence[float]) -> list[tuple[float, Taken]]:
    """The trigger time of each complete frame. triggers: times in order, s of time.monotonic; the first is number 1.

    Some frames say their trigger. Otherwise the first frame of a connection belongs to the newest trigger before it.
    The later frames are assumed to have the same delay by the camera's clock, or without a clock are counted by their
    ids.
    """
    refused = {one.frame.trigger for one in taken if not one.frame.exposed}
    given = [at for number, at in enumerate(triggers, 1) if number not in refused]
    found: list[tuple[float, Taken]] = []
    first: dict[int, tuple[int, int, float]] = {}  # connection: index in `given`, frame id, delay in s
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
    places = [place for place in (after - 1, after) if 0 <= place < len(moments)]
    return min(places, key=lambda place: abs(moments[place] - moment), default=-1)


def window(longest: float) -> float:
    """The ``window_ms`` to recommend. longest: the longest time from a trigger to its exposure, in ms."""
    return max(5.0, 5.0 * math.ceil(MARGIN * longest / 5))


def report_camera(number: int, kind: str, name: str, taken: Sequence[Taken], triggers: Sequence[float] | None,
                  looks: Sequence[Look], counters: Mapping[str, int], seconds: float,
                  errors: Sequence[str] = ()) -> CameraReport:
    """The report of a camera, without advice. triggers: s of time.monotonic; None if the line does not trigger it.

    The first trigger was given alone and its frame waited for, so the time before the second trigger is not counted.
    """
    whole = [one for one in taken if one.whole]
    steady = whole if triggers is None else whole[1:]
    apart = intervals(steady)
    middle = float(np.median([interval for _, interval in apart])) if apart else None
    answered = answers(taken, triggers) if triggers is not None else []
    after = Spread.of([
        max(0.0, one.frame.host_time - at) for at, one in answered if not math.isnan(one.frame.host_time)])
    longest = after.max if after is not None else None
    if triggers is None and apart:  # the next frame may be a full interval away
        longest = 1000 * max(interval for _, interval in apart)
    incomplete = counters.get("incomplete", sum(not one.whole and one.frame.exposed for one in taken))
    gaps, dropped = counters.get("lost", 0), counters.get("dropped", 0)
    exposures = [one.frame.exposure_us for one in whole if one.frame.exposure_us is not None]
    span = steady[-1].arrival - steady[0].arrival if len(steady) > 1 else 0.0
    return CameraReport(
        camera=number, kind=kind, name=name, triggers=None if triggers is None else len(triggers), frames=len(whole),
        measured=len(looks), seconds=round(seconds, 3), rate=round((len(steady) - 1) / span, 3) if span > 0 else None,
        interval_ms=None if middle is None else round(1000 * middle, 3),
        jitter_ms=None if middle is None else Spread.of([abs(interval - middle) for _, interval in apart]),
        device_times=bool(steady) and all(one.frame.device_time is not None for one in steady),
        trigger_to_frame_ms=Spread.of([one.arrival - at for at, one in answered]), trigger_to_exposure_ms=after,
        window_ms=None if longest is None else window(longest), gaps=gaps, incomplete=incomplete,
        unanswered=0 if triggers is None else max(0, len(triggers) - len(whole) - incomplete - gaps - dropped),
        overtaken=counters.get("overtaken", 0), doubled=counters.get("doubled", 0), dropped=dropped,
        disconnects=counters.get("disconnects", 0), reconnects=counters.get("reconnects", 0), clipped=_clipped(looks),
        level=round(float(np.mean([look.level for look in looks])), 2) if looks else None,
        focus=_focus([look.focus for look in looks]),
        exposure_us=round(float(np.median(exposures)), 3) if exposures else None, counters=dict(counters),
        errors=tuple(errors))


def _clipped(looks: Sequence[Look]) -> dict[str, float]:
    shares = {"low": [look.low for look in looks] or [0.0], "high": [look.high for look in looks] or [0.0]}
    mean = {end: round(float(np.mean(values)), 6) for end, values in shares.items()}
    return {**mean, **{f"{end}_worst": round(max(values), 6) for end, values in shares.items()}}


def _focus(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    figures = {"median": np.median(values), "lowest": min(values), "highest": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}

"""Frame ids without wrap-around, and a camera's clock against the line's."""

from __future__ import annotations

import math

STRAGGLE = 0.25  # s that a frame may come after one that was exposed later; then it is lost
RESTARTED = 1000  # ids back: the camera counts anew
TOLD_GAP = 256  # ids; of a longer gap the newest are told one by one, the others are counted
JUMP = 5.0  # s that no frame is held up; a clock that is off by more was set
REPEATED = 3  # frames one after the other whose ids have come already: the camera counts anew
DRIFT = 2e-4  # s a second that two clocks differ by at most


class FrameIds:
    """Frame ids without wrap-around, and what they say is missing."""

    def __init__(self, lowest: int, highest: int) -> None:
        self._cycle = highest - lowest + 1
        self._newest: int | None = None
        self._time: float | None = None  # of the camera's clock, at the newest
        self._old: list[int] = []  # ids one after the other that had come already
        self._missing: dict[int, float] = {}  # number: when it was missed

    def take(self, frame_id: int, now: float, device_time: float | None = None) -> tuple[int, int] | None:
        """The number of a frame, and how many are missing between the newest one and it; None for one that has come already.

        A negative count says that it was overtaken. Raises ValueError where the camera counts anew: ids far back, an old id with a new
        time, or old ids that rise.
        """
        if self._newest is None:
            self._newest, self._time = frame_id, device_time
            return frame_id, 0
        half = self._cycle // 2
        step = (frame_id - self._newest + half) % self._cycle - half
        number = self._newest + step
        if step <= -RESTARTED:
            raise ValueError(f"the camera counts anew: frame id {frame_id} after {self._newest}")
        if step <= 0:
            if self._missing.pop(number, None) is not None:
                return number, -1
            self._old = [*self._old, number] if not self._old or number > self._old[-1] else [number]
            newer = device_time is not None and self._time is not None and device_time > self._time
            if newer or len(self._old) == REPEATED:
                raise ValueError(f"the camera counts anew: frame id {frame_id} after {self._newest}")
            return None
        self._old.clear()
        self._time = device_time
        self._missing.update({missed: now for missed in range(max(number - TOLD_GAP, self._newest + 1), number)})
        self._newest = number
        return number, step - 1

    def overdue(self, now: float) -> list[int]:
        """The numbers of frames that will not come any more, once."""
        lost = [number for number, since in self._missing.items() if now - since > STRAGGLE]
        for number in lost:
            del self._missing[number]
        return lost


class DeviceClock:
    """Where a camera's clock stands against ours. A frame can only be held up on its way, so the shortest way seen is the truest."""

    def __init__(self) -> None:
        self._offset, self._heard = math.inf, 0.0

    def moment(self, device: float, now: float) -> float:
        """When the camera's clock showed ``device`` s, for a frame that arrived at ``now``; s of ``time.monotonic``.

        Raises ValueError where the camera's clock was set.
        """
        if abs(now - device - self._offset) > JUMP and math.isfinite(self._offset):
            raise ValueError(f"the camera's clock jumped by {now - device - self._offset:.0f} s")
        self._offset = min(now - device, self._offset + DRIFT * (now - self._heard))
        self._heard = now
        return device + self._offset

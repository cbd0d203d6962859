"""The belt's position by the PLC's encoder.

Its 32-bit counts wrap, may run back a little, and are wrong now and then.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW = 0.3  # s: the speed is measured over the readings of this time
MIN_SPAN = 0.02  # s between the first and the last reading, for a speed
SLACK = 50  # counts that a reading may be beyond what the speed allows, since its time of arrival varies


def wrapped(counts: int) -> int:
    """A count, or the difference of two counts, as a signed 32-bit number."""
    return (counts + (1 << 31)) % (1 << 32) - (1 << 31)


class BeltPosition:
    """The newest count and the speed of the belt."""

    def __init__(self, fastest: float) -> None:
        """fastest: counts/s that the belt cannot exceed. A reading that implies a higher speed is a glitch."""
        self.count: int | None = None
        self.glitches = 0
        self._fastest = fastest
        self._at = 0.0
        self._readings: deque[tuple[float, int]] = deque()  # (s, counts since the first)
        self._suspect: tuple[float, int] | None = None

    def read(self, count: int, at: float) -> bool:
        """Take a reading of time ``at`` (s). Returns False for an impossible one, which is ignored.

        If the next reading agrees with an impossible one, the encoder was reset: the position continues from there.
        """
        if self.count is None:
            self._begin(count, at)
            return True
        if at <= self._at:
            return self._plausible(count, at, (self._at, self.count))
        if self._plausible(count, at, (self._at, self.count)):
            moved = wrapped(count - self.count)
            self.count, self._at, self._suspect = count, at, None
            self._readings.append((at, self._readings[-1][1] + moved))
            while self._readings[0][0] < at - WINDOW and len(self._readings) > 2:
                self._readings.popleft()
            return True
        self.glitches += 1
        if self._suspect is not None and self._plausible(count, at, self._suspect):
            self._begin(count, at)
        else:
            self._suspect = (at, count)
        return False

    def _begin(self, count: int, at: float) -> None:
        self.count, self._at, self._suspect = count, at, None
        self._readings = deque([(at, 0)])

    def _plausible(self, count: int, at: float, before: tuple[float, int]) -> bool:
        return abs(wrapped(count - before[1])) <= self._fastest * abs(at - before[0]) + SLACK

    def stop(self) -> None:
        """The belt stopped: forget its speed."""
        if self._readings:
            self._readings = deque([(self._at, 0)])

    @property
    def speed(self) -> float:
        """Counts/s; above 0 towards the ejector. 0 while it is not known."""
        if len(self._readings) < 2:
            return 0.0
        (first, begin), (last, end) = self._readings[0], self._readings[-1]
        return (end - begin) / (last - first) if last - first >= MIN_SPAN else 0.0

    def distance(self, target: int) -> int:
        """Counts from the newest count to ``target``; below 0 once the belt is past it."""
        assert self.count is not None
        return wrapped(target - self.count)

    def moment(self, target: int) -> float:
        """When the belt reaches a count at its present speed, s; infinity while it stands or runs back."""
        return self._at + self.distance(target) / self.speed if self.speed > 0 else math.inf

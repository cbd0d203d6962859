"""Frame ids without wrap-around, and the camera's clock compared with the line's."""

from __future__ import annotations

import math

REORDER_WAIT = 0.25  # s that a frame may arrive after one that was exposed later; after that it counts as lost
RESTART_STEP = 1000  # ids; a jump back of this many means that the camera started counting again
LISTED_LOST = 256  # of a longer gap, only the newest ids are listed one by one; the others are just counted
REPEATED = 3  # old ids in a row that mean that the camera started counting again
CLOCK_JUMP = 5.0  # s; no frame takes so long to arrive, so the camera's clock was set
DRIFT = 2e-4  # s per second that two clocks differ by, at most


class FrameIds:
    """Turns frame ids into numbers that do not wrap, and finds the missing ones."""

    def __init__(self, lowest: int, highest: int) -> None:
        self._cycle = highest - lowest + 1
        self._newest: int | None = None  # number
        self._device_time: float | None = None  # of the newest frame
        self._old: list[int] = []  # numbers that came before, seen again in a row
        self._missing: dict[int, float] = {}  # number: when the gap was seen

    def take(self, frame_id: int, now: float, device_time: float | None = None) -> tuple[int, int] | None:
        """The number of a frame, and how many frames are missing just before it; None for a frame that came before.

        For a frame that was overtaken by a later one, the count is -1. Raises ValueError if the camera started counting
        again: an id far back, an old id with a newer device time, or a row of old ids that rise.
        """
        if self._newest is None:
            self._newest, self._device_time = frame_id, device_time
            return frame_id, 0
        half = self._cycle // 2
        step = (frame_id - self._newest + half) % self._cycle - half
        number = self._newest + step
        if step <= -RESTART_STEP:
            raise ValueError(f"the camera started counting again: frame id {frame_id} after {self._newest}")
        if step <= 0:
            if self._missing.pop(number, None) is not None:
                return number, -1
            self._old = [*self._old, number] if not self._old or number > self._old[-1] else [number]
            newer = device_time is not None and self._device_time is not None and device_time > self._device_time
            if newer or len(self._old) == REPEATED:
                raise ValueError(f"the camera started counting again: frame id {frame_id} after {self._newest}")
            return None
        self._old.clear()
        self._device_time = device_time
        self._missing.update({missed: now for missed in range(max(number - LISTED_LOST, self._newest + 1), number)})
        self._newest = number
        return number, step - 1

    def overdue(self, now: float) -> list[int]:
        """The numbers of missing frames that are now lost. Each is returned once."""
        lost = [number for number, since in self._missing.items() if now - since > REORDER_WAIT]
        for number in lost:
            del self._missing[number]
        return lost


class DeviceClock:
    """Converts the camera's clock to the line's.

    A frame can only arrive late, never early. So the smallest difference between the two clocks is the most accurate
    one.
    """

    def __init__(self) -> None:
        self._offset, self._updated = math.inf, 0.0

    def to_host(self, device_time: float, now: float) -> float:
        """The time of ``time.monotonic``, in s, at which the camera's clock showed ``device_time`` s.

        ``now``: when the frame arrived. Raises ValueError if the camera's clock was set.
        """
        offset = now - device_time
        if abs(offset - self._offset) > CLOCK_JUMP and math.isfinite(self._offset):
            raise ValueError(f"the camera's clock jumped by {offset - self._offset:.0f} s")
        self._offset = min(offset, self._offset + DRIFT * (now - self._updated))
        self._updated = now
        return device_time + self._offset

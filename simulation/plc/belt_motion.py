"""How a simulated belt moves: at its nominal speed, slower, faster, not at all, or backwards."""

from __future__ import annotations

import math
from collections.abc import Sequence


class BeltMotion:
    """The belt's position over time. Positions are belt seconds: seconds of travel at nominal speed."""

    def __init__(self, speeds: Sequence[tuple[float, float]] = (), start: float = 0.0) -> None:
        """speeds: (seconds, share of the nominal speed), one after the other; then the share is 1.

        Below 0 the belt runs backwards.
        """
        self._pieces: list[tuple[float, float, float]] = []  # start time, position at that time, share
        at, way = start, 0.0
        for seconds, share in speeds:
            self._pieces.append((at, way, share))
            at, way = at + seconds, way + seconds * share
        self._pieces.append((at, way, 1.0))

    def _piece(self, now: float) -> tuple[float, float, float]:
        return next((piece for piece in reversed(self._pieces) if piece[0] <= now), self._pieces[0])

    def share(self, now: float) -> float:
        """The speed as a share of the nominal one."""
        return self._piece(now)[2]

    def way(self, now: float) -> float:
        """The position, in belt seconds since the start."""
        at, way, share = self._piece(now)
        return way + (now - at) * share

    def moment(self, way: float, after: float) -> float:
        """The first time, from ``after`` on, at which the belt has reached a position."""
        if self.way(after) >= way:
            return after
        for number, (at, begin, share) in enumerate(self._pieces):
            end = self._pieces[number + 1][0] if number + 1 < len(self._pieces) else math.inf
            if end > after and share > 0:
                reached = max(at, after) if begin + (max(at, after) - at) * share >= way else at + (way - begin) / share
                if reached <= end:
                    return reached
        raise AssertionError("the belt always moves in the end")

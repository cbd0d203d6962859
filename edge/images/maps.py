"""Arrays for maps that are used again as soon as nobody holds them: a large one, new for each frame, costs more than work on it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

MapArray = NDArray[np.float32]  # an anomaly map, [h, w]
HELD_HERE = 2  # references to an array that only the list and the question itself hold
MOST = 16  # arrays that are kept for later


class MapPool:
    """Arrays float32 of the shapes that were asked for. Not for several threads at once."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.float32]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array of that shape with anything in it. It is given out again when neither it nor a view of it is held any more."""
        arrays: list[Any] = self._arrays
        for i in range(len(arrays)):
            if arrays[i].shape == shape and sys.getrefcount(arrays[i]) == HELD_HERE:
                return arrays[i]
        made = np.empty(shape, np.float32)
        if len(arrays) == MOST:
            del arrays[0]
        arrays.append(made)
        return made

"""Arrays for maps, reused as soon as nobody holds them: allocating a large one for each frame costs more than filling
it.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

MapArray = NDArray[np.float32]  # an anomaly map, [h, w]
HELD_HERE = 2  # references to an array that nobody else holds: the pool's list and the call that counts
MOST = 16  # arrays kept for reuse


class MapPool:
    """float32 arrays of the shapes that were asked for. For one thread at a time."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.float32]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array of that shape with arbitrary content. It is reused once nobody holds it or a view of it."""
        arrays = self._arrays
        for i in range(len(arrays)):
            if arrays[i].shape == shape and sys.getrefcount(arrays[i]) == HELD_HERE:
                return arrays[i]
        made = np.empty(shape, np.float32)
        if len(arrays) == MOST:
            del arrays[0]
        arrays.append(made)
        return made

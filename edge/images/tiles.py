"""Large frames in overlapping tiles, and one map blended from the tiles' maps.

A frame that is larger than the network's input goes through it in overlapping tiles. Blobs are found on the blended
map, so that a defect on a seam is one blob. A tile's weights fall linearly over its overlap with the next tile, and the
weights at each pixel add up to 1 (a partition of unity, as the product of one over rows and one over columns).
"""

from __future__ import annotations

from functools import cached_property
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError
from edge.images.frames import Frame

Weights = NDArray[np.float32]


class _Axis:
    """The tiles along one side of a frame."""

    def __init__(self, length: int, tile: int, overlap: int, side: int) -> None:
        """length, tile, overlap: px of the frame; side: px of a tile's map. ``offsets`` are in px of the blended
        map.
        """
        scale = tile / side
        self.length = max(side, ceil(length / scale - 1e-9))
        step = max(1, side - ceil(overlap / scale))
        count = 1 + ceil((self.length - side) / step)
        self.offsets = [round(float(offset)) for offset in np.linspace(0, self.length - side, count)]
        # less than one px of the map off
        self.pixels = [round(float(offset)) for offset in np.linspace(0, length - tile, count)]
        self._side = side

    @cached_property
    def weights(self) -> list[Weights]:
        """The weights of each tile, float32 ``[side]``."""
        side, offsets = self._side, self.offsets
        ramp = (np.arange(side) + 0.5).astype(np.float32)
        found = []
        for i, offset in enumerate(offsets):
            left = ramp / max(1, offsets[i - 1] + side - offset) if i else np.ones(side, np.float32)
            right = ramp[::-1] / max(1,
                                     offset + side
                                     - offsets[i + 1]) if i + 1 < len(offsets) else np.ones(side, np.float32)
            found.append(np.minimum(1, np.minimum(left, right)))
        total = np.zeros(self.length, np.float32)
        for offset, weights in zip(offsets, found, strict=True):
            total[offset:offset + side] += weights
        return [np.asarray(weights / total[offset:offset + side], np.float32) for offset,
                weights in zip(offsets, found, strict=True)]


class Tiles:
    """The tiles of frames of one size."""

    def __init__(self, frame_size: tuple[int, int], tile: tuple[int, int], overlap: int,
                 map_size: tuple[int, int]) -> None:
        """frame_size, tile: (height, width) in px of the frame. overlap: of neighbouring tiles, at least this many px
        of the frame. map_size: (height, width) of one tile's map. Raises InputError for a frame that is smaller than a
        tile.
        """
        if frame_size[0] < tile[0] or frame_size[1] < tile[1]:
            raise InputError("the frame is smaller than a tile", got=f"{frame_size[1]}x{frame_size[0]} px",
                             expected=f"at least {tile[1]}x{tile[0]} px",
                             next="Correct `tile` in decision.toml, or the camera's frame size.")
        self._tile, self._side = tile, map_size
        self._axes = [_Axis(*sizes) for sizes in zip(frame_size, tile, (overlap, overlap), map_size, strict=True)]
        self.map_size = (self._axes[0].length, self._axes[1].length)
        rows, columns = (range(len(axis.offsets)) for axis in self._axes)
        self._grid = [(row, column) for row in rows for column in columns]
        # by axis weights, which most tiles share
        self._weights: dict[tuple[bytes, bytes], tuple[Weights, tuple[int, int], tuple[int, int]]] = {}

    def __len__(self) -> int:
        return len(self._grid)

    def keep(self, region: NDArray[np.bool_]) -> None:
        """Keep only the tiles that overlap a region, a boolean array of the blended map's size."""
        self._grid = [place for place in self._grid if region[self._window(place)].any()]

    def _window(self, place: tuple[int, int]) -> tuple[slice[int, int, int], slice[int, int, int]]:
        top, left = (axis.offsets[i] for axis, i in zip(self._axes, place, strict=True))
        return slice(top, top + self._side[0]), slice(left, left + self._side[1])

    def cut(self, frame: Frame, index: int) -> Frame:
        """A tile of a frame, as a view."""
        top, left = (axis.pixels[i] for axis, i in zip(self._axes, self._grid[index], strict=True))
        return frame[top:top + self._tile[0], left:left + self._tile[1]]

    def add(self, index: int, tile_map: NDArray[np.float32], blended: NDArray[np.float32]) -> None:
        """Add a tile's weighted map to ``blended``: float32, C-contiguous, all zeros before the first tile."""
        place = self._grid[index]
        weights, (top, bottom), (left, right) = self._shares(place)
        into = blended[self._window(place)]
        into[top:bottom, left:right] = tile_map[top:bottom, left:right]  # no other tile overlaps there
        for strip in ((slice(None, top), slice(None)), (slice(bottom, None), slice(None)),
                      (slice(top, bottom), slice(None, left)), (slice(top, bottom), slice(right, None))):
            if into[strip].size:
                cv2.accumulateProduct(tile_map[strip], weights[strip], into[strip])

    def _shares(self, place: tuple[int, int]) -> tuple[Weights, tuple[int, int], tuple[int, int]]:
        """A tile's weights, and the rows and columns (first, last + 1) between which they are 1."""
        along = [axis.weights[i] for axis, i in zip(self._axes, place, strict=True)]
        key = along[0].tobytes(), along[1].tobytes()
        if key not in self._weights:
            alone = [np.flatnonzero(weights == 1) for weights in along]
            rows, columns = ((int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0) for at in alone)
            self._weights[key] = np.outer(*along), rows, columns
        return self._weights[key]

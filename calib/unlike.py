"""How unusual each of many frames is, without knowing what a defect is: nearest neighbours among local features.

This is PatchCore (Roth et al. 2022) with the first layers of EfficientNet-Lite0 (`calib/embedding.onnx`, written by
`export/embedding.py`), comparing each frame with all others instead of with known good ones: what occurs in one frame
only is far from everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.engines.openvino import OpenVinoEngine
from edge.images.frames import Frame, prepare_frame

GRAPH = Path(__file__).with_name("embedding.onnx")
SIDE = 256  # px, of the graph's input
MEAN = 0.4  # mean brightness that each frame is scaled to, so that light alone is not unusual
RIDGE = 1e-2  # share of the mean variance, added in whitening
MEMORY = 20_000  # cells of all frames together that each frame is compared with
LOUDEST = 5  # most unusual cells of a frame, whose mean is the frame's distance

Array = NDArray[np.float32]


class Embedding:
    """The packaged feature network, on the processor."""

    def __init__(self, threads: int = 0) -> None:
        """threads: 0 for all cores. Raises EngineError."""
        self._engine = OpenVinoEngine(GRAPH, (SIDE, SIDE, 3), precision="fp32", threads=threads, slots=1, batch=1)
        self._slot = self._engine.lease()

    def __call__(self, frame: Frame) -> Array:
        """The features of a frame in 32 x 32 cells: float32 ``[32, 32, 64]``."""
        image = self._slot.input[0]
        prepare_frame(frame, image)
        np.copyto(image, np.rint((image * (255 * MEAN / max(float(image.mean()), 5.0))).clip(0, 255)).astype(np.uint8))
        self._slot.start(1)
        return np.ascontiguousarray(self._slot.wait(60.0)[0].transpose(1, 2, 0))

    def close(self) -> None:
        """Free the engine."""
        self._slot.release()
        self._engine.close()


def whitened(features: Array) -> Array:
    """Features ``[N, h, w, D]``, transformed to uncorrelated directions of unit variance."""
    flat = features.reshape(-1, features.shape[-1])
    centred = flat - flat.mean(axis=0)
    values, vectors = np.linalg.eigh((centred.T @ centred / len(flat)).astype(np.float64))
    return np.asarray((centred @ (vectors / np.sqrt(values.clip(0) + RIDGE * values.mean()
                                                    + 1e-12))).reshape(features.shape), np.float32)


def unlike_cells(features: Array, progress: Callable[[int, int], None] = lambda *_: None, seed: int = 0) -> Array:
    """The distance of each cell from the nearest cell of any other frame, divided by the median distance at its place.

    ``[N, h, w, D]`` -> ``[N, h, w]``, for at least two frames. Because of the division, a part's edges, which always
    differ, are compared with the edges of other parts.
    """
    count, height, width, depth = features.shape
    cells = whitened(features).reshape(count, height * width, depth)
    kept = min(height * width, max(20, MEMORY // count))
    chosen = np.random.default_rng(seed).choice(height * width, kept, replace=False)
    memory = cells[:, chosen].reshape(-1, depth)
    norms = np.square(memory).sum(axis=1)
    result = np.empty((count, height, width), np.float32)
    for index, own in enumerate(cells):
        squared = norms - 2 * (own @ memory.T)
        squared[:, index * kept:(index + 1) * kept] = np.inf
        nearest = squared.min(axis=1) + np.square(own).sum(axis=1)
        result[index] = cv2.blur(np.sqrt(nearest.clip(0)).reshape(height, width), (3, 3))
        progress(index + 1, count)
    usual = cv2.blur(np.median(result, axis=0), (3, 3))
    return np.asarray(result / (usual + 0.3 * usual.mean() + 1e-12), np.float32)


def unlikeness(cells: Array) -> Array:
    """The distance of each frame: the mean of its five largest cells of ``[N, h, w]``."""
    flat = np.sort(cells.reshape(len(cells), -1), axis=1)
    return np.asarray(flat[:, -LOUDEST:].mean(axis=1), np.float32)


def stand_out(values: Array) -> NDArray[np.bool_]:
    """Which frames are outliers: more than 3.5 deviations above the median. The deviation is 1.4826 times the median
    absolute deviation, or 5 % of the median if that is larger.
    """
    middle = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - middle))
    return np.asarray(values > middle + 3.5 * max(float(deviation), 0.05 * float(middle)))


def k_centres(features: Array, wanted: int, duplicate: float) -> list[int]:
    """Indices of ``wanted`` frames that cover all of them (Gonzalez 1985; Sener and Savarese 2018).

    Each one is the frame farthest from those already chosen. features: ``[N, h, w, D]``; frames are compared by their
    means over 4 x 4 regions. Stops early if every remaining frame is closer to a chosen one than ``duplicate`` times
    the median distance between two frames.
    """
    count, height, width, depth = features.shape
    flat = features.reshape(count, 4, height // 4, 4, width // 4, depth).mean(axis=(2, 4)).reshape(count, -1)
    flat = (flat - flat.mean(axis=0)) / (flat.std(axis=0) + 1e-6)
    sample = flat[np.linspace(0, count - 1, min(count, 50)).astype(int)]
    between = np.linalg.norm(sample[:, None] - sample[None], axis=2)
    usual = float(np.median(between[np.triu_indices(len(sample), 1)])) if len(sample) > 1 else 0.0
    chosen = [int(np.argmin(np.square(flat).sum(axis=1)))]
    nearest = np.linalg.norm(flat - flat[chosen[0]], axis=1)
    while len(chosen) < min(wanted, count):
        farthest = int(np.argmax(nearest))
        if nearest[farthest] <= duplicate * usual:
            break
        chosen.append(farthest)
        nearest = np.minimum(nearest, np.linalg.norm(flat - flat[farthest], axis=1))
    return chosen

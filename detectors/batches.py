"""Batches: views of good images, most with artificial defects, prepared ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.detector import Detector
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase, Views

AHEAD = 4  # batches prepared before they are needed


def draw_view(image: NDArray[np.uint8], views: Views, rng: np.random.Generator) -> NDArray[np.float32]:
    """A view of a good image ``[H, W, C]``: float32 ``[crop, crop, C]`` in 0..1, with a little sensor noise."""
    height, width = image.shape[:2]
    if views.shift or views.turn:
        angle = rng.uniform(-views.turn, views.turn)
        move = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        move[:, 2] += rng.uniform(-views.shift, views.shift, 2) * np.array([width, height])
        moved = cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
        image = np.asarray(moved.reshape(image.shape), dtype=np.uint8)
    crop = min(views.crop, height, width)
    y, x = (views.grid * int(rng.integers(0, (side - crop) // views.grid + 1)) for side in (height, width))
    part: NDArray[np.float32] = image[y:y + crop, x:x + crop].astype(np.float32) / np.float32(255)
    if views.mirror and rng.random() < 0.5:
        part = part[::-1]
    if views.mirror and rng.random() < 0.5:
        part = part[:, ::-1]
    if views.light:
        part = relight(part, views.light, rng)
    noise = rng.standard_normal(part.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.015))
    return np.asarray(np.clip(part + noise, 0, 1), dtype=np.float32)


def relight(part: NDArray[np.float32], strength: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """The same view ``[h, w, C]`` in different light: gain, slope, offset and gamma are random."""
    height, width = part.shape[:2]
    ys, xs = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.12 * strength)
    gain = rng.uniform(1 - 0.1 * strength, 1 + 0.1 * strength)
    light = gain * (1 + slope * (np.cos(angle) * xs + np.sin(angle) * ys))
    lit = np.clip(part * light[..., None].astype(np.float32) + np.float32(rng.uniform(-0.05, 0.05) * strength), 0, 1)
    return np.asarray(lit ** np.float32(np.exp(rng.uniform(-0.1, 0.1) * strength)), dtype=np.float32)


def make_batch(network: Detector, phase: Phase, pixels: NDArray[np.uint8], natural: NaturalImages,
               seed: tuple[int, ...]) -> Batch:
    """A batch of ``phase`` from uint8 images ``[N, H, W, C]``. It depends only on ``seed``: (seed, phase, step)."""
    rng = np.random.default_rng(seed)
    clean, images, masks = [], [], []
    for _ in range(phase.batch_size):
        view = draw_view(pixels[rng.integers(len(pixels))], phase.views, rng)
        image, mask = view, np.zeros((*view.shape[:2], 1), np.float32)
        if rng.random() < phase.defective:
            image, mask = network.make_defects(view, rng, natural)
        clean.append(view)
        images.append(image)
        masks.append(mask)
    return Batch(_tensor(clean), _tensor(images), _tensor(masks))


def _tensor(arrays: list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class Prefetch:
    """Batches in order. A second thread prepares a few of them ahead, while earlier steps run."""

    def __init__(self, make: Callable[[int], Batch], first: int) -> None:
        """make: returns the batch of a step; first: the first step."""
        self._make = make
        self._pool = ThreadPoolExecutor(1)
        self._ahead: deque[Future[Batch]] = deque(self._pool.submit(make, step) for step in range(first, first + AHEAD))
        self._next = first + AHEAD

    def take(self) -> Batch:
        """The next batch."""
        self._ahead.append(self._pool.submit(self._make, self._next))
        self._next += 1
        return self._ahead.popleft().result()

    def close(self) -> None:
        """Stop the thread and drop the batches that were not taken."""
        self._pool.shutdown(cancel_futures=True)

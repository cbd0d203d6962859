"""A toy detector: all that a new detector needs besides its line in `detectors.registry`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from detectors.artificial_defects import Image
from detectors.detector import Detector, Preset
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase, Views


class ToyDetector(Detector):
    """Learns to mark white squares. Image float32 ``[N, 1, H, W]`` -> map ``[N, 1, H, W]`` in 0..1."""

    channels = 1
    stride = 16
    presets: ClassVar = {"edge": Preset(64, {"width": 4})}
    post_filter = ("mean:3", "threshold")

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image)
        return logits.float().sigmoid()

    def phases(self, size: int) -> list[Phase]:
        return [Phase("mark", 1.0, self.losses, Views(size // 2), batch_size=2, learning_rate=3e-2)]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"mask": F.mse_loss(self(batch.image), batch.mask)}

    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        mask = np.zeros_like(image)
        y, x = rng.integers(0, 16, 2)
        mask[y:y + 12, x:x + 12] = 1
        return np.maximum(image, mask), mask

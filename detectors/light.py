"""Parts that come in any light: every image is brought to the same mean before the network sees it. No paper's: see the ablation.

Where exposure or lighting differs from part to part, differences of features and of pixels grow with the light, and a network spends its
minutes on learning every light. Where it does not, a part that is darker than all others is a defect, and the images stay as they came.
Local OCC does without: its features are about the image's own mean already.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detectors.backbones import Backbone
from detectors.detector import Detector

MEAN = 0.4  # of an evened image
DARKEST = 0.02  # an image with a lower mean shows nothing that could be made visible
VARIES = 0.15  # coefficient of variation of the good images' means; lamps that age and parts that differ stay below 0.1


def evened(image: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` in 0..1, each with one gain for all its pixels and channels, so that its mean is 0.4; still in 0..1."""
    gain = MEAN / image.mean((1, 2, 3), keepdim=True).clamp_min(DARKEST)
    return (image * gain).clamp(0, 1)


def evened_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same of images uint8 ``[N, H, W, C]``."""
    gain = MEAN / (pixels.mean((1, 2, 3), keepdims=True) / 255).clip(DARKEST)
    return np.stack([np.rint((image * factor).clip(0, 255)).astype(np.uint8) for image, factor in zip(pixels, gain, strict=True)])


def light_varies(pixels: NDArray[np.uint8]) -> bool:
    """Whether good images uint8 ``[N, H, W, C]`` differ so much in brightness that no view in other light covers it."""
    means = pixels.mean((1, 2, 3))
    return bool(means.std() > VARIES * means.mean())


class EvenLightDetector(Detector):
    """A detector that may bring every image to the same mean before it looks at it. Subclasses define `anomaly_map`."""

    def __init__(self, even_light: bool | None) -> None:
        """even_light: whether images are brought to the same mean; None counts as no, until `settle` has decided."""
        super().__init__()
        self.even_light = bool(even_light)

    def forward(self, image: Tensor) -> Tensor:
        return self.anomaly_map(evened(image) if self.even_light else image)

    @abstractmethod
    def anomaly_map(self, image: Tensor) -> Tensor:
        """`Detector.forward` of an image whose light is settled."""

    @classmethod
    def settle(cls, arguments: dict[str, Any], pixels: NDArray[np.uint8], backbone: Backbone | None) -> None:
        if arguments["even_light"] is None:
            arguments["even_light"] = light_varies(pixels)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return evened_pixels(pixels) if self.even_light else pixels

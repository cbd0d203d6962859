"""Light that differs from part to part: every image is scaled to the same mean before the network sees it.

This is in none of the papers; an ablation measures it. Where exposure or lighting differs between parts, differences of
features and pixels grow with the light, and a network spends its time learning every light. Where the light is steady,
a part darker than all others is a defect, so the images stay unchanged. Local OCC does not need this: its features are
already taken relative to the image's own mean.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detectors.backbones import Backbone
from detectors.detector import Detector

MEAN = 0.4  # of an image after scaling
DARKEST = 0.02  # the gain stops growing below this mean: such an image shows nothing
VARIES = 0.15  # coefficient of variation of the good images' means; ageing lamps and unequal parts stay below 0.1


def evened(image: Tensor) -> Tensor:
    """Scale each image ``[N, C, H, W]`` in 0..1 by one gain, so that its mean is 0.4; the result is clipped to 0..1."""
    gain = MEAN / image.mean((1, 2, 3), keepdim=True).clamp_min(DARKEST)
    return (image * gain).clamp(0, 1)


def evened_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`evened` for images uint8 ``[N, H, W, C]``."""
    gain = MEAN / (pixels.mean((1, 2, 3), keepdims=True) / 255).clip(DARKEST)
    pairs = zip(pixels, gain, strict=True)
    return np.stack([np.rint((image * factor).clip(0, 255)).astype(np.uint8) for image, factor in pairs])


def light_varies(pixels: NDArray[np.uint8]) -> bool:
    """Whether good images uint8 ``[N, H, W, C]`` differ more in brightness than relit views (`Views.light`) cover."""
    means = pixels.mean((1, 2, 3))
    return bool(means.std() > VARIES * means.mean())


class EvenLightDetector(Detector):
    """A detector that can scale every image to the same mean first. Subclasses define `anomaly_map`."""

    def __init__(self, even_light: bool | None) -> None:
        """even_light: whether images are scaled to the same mean. None counts as no; `settle` replaces it."""
        super().__init__()
        self.even_light = bool(even_light)

    def forward(self, image: Tensor) -> Tensor:
        return self.anomaly_map(evened(image) if self.even_light else image)

    @abstractmethod
    def anomaly_map(self, image: Tensor) -> Tensor:
        """As `Detector.forward`, for an image that has already been scaled if it needs to be."""

    @classmethod
    def settle(cls, arguments: dict[str, Any], pixels: NDArray[np.uint8], backbone: Backbone | None) -> None:
        if arguments["even_light"] is None:
            arguments["even_light"] = light_varies(pixels)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return evened_pixels(pixels) if self.even_light else pixels

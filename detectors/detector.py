"""The contract of a detector: what the fit, the export and the benchmarks may ask of one.

A new detector is one file with a subclass of `Detector`, and one line in `detectors.registry`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.artificial_defects import Image
from detectors.backbones import Backbone
from detectors.natural import NaturalImages
from detectors.phases import Phase


@dataclass(frozen=True)
class Preset:
    """The sizes of a network, by the name that ``--preset`` takes."""

    size: int  # side of the network's square input in px
    arguments: Mapping[str, Any]  # constructor arguments, ``width`` among them


class Detector(nn.Module, ABC):
    """A network that maps an image to an anomaly map. Its ``forward`` is the graph that the line runs.

    Every argument of the constructor has a default, so that a run's record can list them all. Three have a fixed
    meaning: ``width`` scales the number of channels; ``size`` (only where the layers depend on it) is the side of the
    input in px; ``even_light`` belongs to `detectors.light`. The values must fit into JSON.

    What a detector needs beyond its weights when it runs must be in registered buffers: a run keeps the state dict and
    the constructor's arguments, and nothing else.
    """

    channels: ClassVar[int]  # of the input image: 1 for grey, 3 for colour
    stride: ClassVar[int]  # the sides of an image are multiples of it, in px
    presets: ClassVar[Mapping[str, Preset]]  # "edge" is the default; "paper" has the paper's sizes and nothing else
    post_filter: ClassVar[tuple[str, ...]]  # the steps between map and verdict, as decision.toml writes them
    backbone: ClassVar[str | None] = None  # the paper's ImageNet network, a name in `detectors.backbones.BACKBONES`
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # constructor arguments that remove a part, by its name
    # The paper's figures on MVTec AD by set: (pixel AUROC,) or (image AUROC, pixel AUROC, PRO).
    published: ClassVar[Mapping[str, tuple[float, ...]]] = {}

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Image float32 ``[N, channels, H, W]`` in 0..1 -> anomaly map float32 ``[N, 1, H, W]``, 0 or more.

        A higher value means that the position looks less like a good part. There is no threshold in the map.
        """

    def __init_subclass__(cls, **options: Any) -> None:
        """Raise TypeError for a class that declares a backbone and does not take it."""
        super().__init_subclass__(**options)
        if cls.backbone is not None and cls.use_backbone is Detector.use_backbone:
            raise TypeError(f"{cls.__name__} declares a backbone; it has to override `use_backbone`")

    @abstractmethod
    def phases(self, size: int) -> list[Phase]:
        """The phases of a fit on square images of ``size`` px, in order. Their shares add up to 1."""

    @abstractmethod
    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        """Put artificial defects on a good image.

        image: float32 ``[H, W, channels]`` in 0..1; it is not changed. Returns the defective image (same shape, dtype
        and range) and its mask, float32 ``[H, W, 1]``, 1 where the image is defective. All randomness comes from
        ``rng``, so that a seed repeats a fit. Batches are prepared in a thread: the method must not use torch's
        random numbers.
        """

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The constructor's arguments and their defaults, in the constructor's order."""
        return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}

    @classmethod
    def settle(cls, arguments: dict[str, Any], pixels: NDArray[np.uint8], backbone: Backbone | None) -> None:
        """Fill in constructor arguments that depend on the good images or on the backbone.

        Optional hook, called once, before the network is built. ``arguments`` is changed in place. pixels: all fitted
        images, uint8 ``[N, H, W, channels]``. backbone: with its weights, None where the class declares none.
        """

    def use_backbone(self, backbone: Backbone) -> None:
        """Take the frozen backbone. Called once, before the first phase, if the class declares a ``backbone``.

        A class that declares one has to override this; `__init_subclass__` refuses it otherwise.
        """

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The fitted images as the phases and `finish` see them: uint8 ``[N, H, W, channels]`` -> the same.

        Optional hook, called once, before the first phase. Default: the images as they are.
        """
        return pixels

    def finish(self, pixels: NDArray[np.uint8]) -> None:
        """Measure the fitted network on the good images uint8 ``[N, H, W, channels]``, and keep the result in buffers.

        Optional hook, called once, after the last step, in evaluation mode and without gradients.
        """

"""The detectors by name. A detector is a ``torch.nn.Module`` whose ``forward`` is the deployable graph."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edge.prepare import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from detectors.defects import Image

NAMES = ("ndp-net", "fim-net", "sidn", "local-occ", "aw-ssim")
BUILT = {"sidn": ("detectors.sidn", "Sidn")}


class Detector(Protocol):
    """What the fit loop and the export need of a network, beyond being a ``torch.nn.Module``."""

    channels: ClassVar[int]  # of the input image
    stride: ClassVar[int]  # image sides are multiples of it
    batch_size: ClassVar[int]
    learning_rate: ClassVar[float]  # of Adam, at its highest
    post_filter: ClassVar[tuple[str, ...]]  # the paper's, in decision.toml's words

    def losses(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, whose sum is minimised. image, mask: float32 ``[N, C or 1, H, W]``."""

    def make_defects(self, image: Image, rng: np.random.Generator) -> tuple[Image, Image]:
        """A defective image and its mask from a good one, float32 ``[H, W, C]`` and ``[H, W, 1]``."""


def detector_class(name: str) -> Any:
    """The class of the detector called ``name``. Raises InputError for a name that is unknown or not built yet."""
    if name not in BUILT:
        what = f"detector {name!r} is not in this version yet" if name in NAMES else f"there is no detector {name!r}"
        raise InputError(what, expected="one of " + ", ".join(BUILT), next="Run `lineside fit --help`.")
    module, cls = BUILT[name]
    return getattr(import_module(module), cls)

"""The phases of a fit: each has its views of the good images, the parts that it trains, and its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Views of good images, the same views with artificial defects, and the masks of the defects.

    clean, image: float32 ``[N, C, h, w]`` in 0..1. mask: float32 ``[N, 1, h, w]``, 1 where ``image`` is defective.
    In views that stay good, ``image`` equals ``clean`` and the mask is 0.
    """

    clean: Tensor
    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Views:
    """How views of the good images are drawn: a random square crop, possibly shifted, turned, mirrored and relit."""

    crop: int  # side in px; the whole image if it is the image's side
    mirror: bool = True  # never for an object in a fixture (`detectors.images.positions_differ`)
    light: float = 1.0  # 0: unchanged; 1: gain +-10 %, a slope up to 12 %, offset +-5 %
    shift: float = 0.0  # largest shift, as a share of the image's side
    turn: float = 0.0  # largest turn in degrees
    grid: int = 1  # px; for an object in a fixture, crops start at multiples of this


@dataclass(frozen=True)
class Phase:
    """One phase of a fit: its share of the budget, what it trains, with which losses, on which views."""

    name: str
    share: float  # of the fit's steps or minutes; the shares of all phases add up to 1
    losses: Callable[[Batch], dict[str, Tensor]]  # the loss terms by name, already weighted; their sum is minimised
    views: Views
    batch_size: int
    learning_rate: float  # Adam's, at its highest
    # Modules and parameters that learn; the others are frozen, in evaluation mode. Empty: all learn.
    trained: tuple[str, ...] = ()
    defective: float = 0.85  # share of the views with artificial defects
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    # Called once, before the phase's first step, with all fitted images [N, H, W, C].
    start: Callable[[NDArray[np.uint8]], None] | None = None

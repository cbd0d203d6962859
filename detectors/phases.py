"""What a detector tells the fit loop: its phases, one after the other, each with its views, its trained parts and its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Views of good images, the same with artificial defects, and where those are.

    clean, image: float32 ``[N, C, h, w]`` in 0..1; mask: float32 ``[N, 1, h, w]``, 1 where ``image`` is defective. ``image`` is
    ``clean`` for the share of views that stays good.
    """

    clean: Tensor
    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Views:
    """How views of the good images are drawn: a random square crop, mirrored, in other light, moved."""

    crop: int  # px; the image's side: no crop
    mirror: bool = True  # never of parts whose places differ (`detectors.images.positions_differ`)
    light: float = 1.0  # 0: as the camera saw it; 1: gain +-10 %, a slope of 12 %, offset +-5 %
    shift: float = 0.0  # largest shift, as a share of the image's side
    turn: float = 0.0  # largest turn in degrees
    grid: int = 1  # px; crops of parts whose places differ begin at multiples of it


@dataclass(frozen=True)
class Phase:
    """A part of a fit: which share of its time, what learns, from which losses, on which views."""

    name: str
    share: float  # of the fit's steps or minutes; the shares of all phases add up to 1
    losses: Callable[[Batch], dict[str, Tensor]]  # the terms that are added up, by name, with their weights
    views: Views
    batch_size: int
    learning_rate: float  # Adam's, at its highest
    trained: tuple[str, ...] = ()  # modules and parameters that learn, all others are frozen in evaluation mode; none named: all learn
    defective: float = 0.85  # share of the views with artificial defects
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    start: Callable[[NDArray[np.uint8]], None] | None = None  # called once before the first step, with all fitted images [N, H, W, C]

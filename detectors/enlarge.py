"""Bilinear upsampling. An exported graph has two matrix products instead of Resize: faster, and possible in INT8."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@cache
def bilinear_weights(source: int, target: int) -> NDArray[np.float32]:
    """The weight of each ``source`` position for each ``target`` position: float32 ``[target, source]``, rows sum to 1.

    Positions are the centres of cells, as in F.interpolate with ``align_corners=False``. Beyond the outermost centres
    the value is constant.
    """
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    left = np.minimum(at.astype(int), max(0, source - 2))
    weights = np.zeros((target, source), np.float32)
    weights[np.arange(target), left] = left + 1 - at
    weights[np.arange(target), np.minimum(left + 1, source - 1)] += at - left
    return weights


def by_products(image: Tensor, height: int, width: int) -> Tensor:
    """`enlarged`, as two matrix products with constants."""
    source = image.shape[-2:]
    rows, columns = (torch.from_numpy(bilinear_weights(a, b)).to(image.device)
                     for a, b in zip(source, (height, width), strict=True))
    return rows @ (image @ columns.T)


def enlarged(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear upsampling: ``[N, C, h, w]`` -> ``[N, C, height, width]``, with height >= h and width >= w."""
    if image.shape[-2:] == (height, width):
        return image
    if torch.compiler.is_exporting():
        return by_products(image, height, width)
    return F.interpolate(image, (height, width), mode="bilinear", align_corners=False)

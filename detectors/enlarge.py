"""Bilinear enlarging, in graphs as two matrix products: runtimes work them out faster than their own operator, which INT8 does not know."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@cache
def bilinear_weights(source: int, target: int) -> NDArray[np.float32]:
    """What each of ``source`` positions in a row counts for each of ``target``: float32 ``[target, source]``, rows that sum to 1.

    Positions are middles of cells, as in F.interpolate with ``align_corners=False``; beyond the outermost ones the values stay.
    """
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    left = np.minimum(at.astype(int), max(0, source - 2))
    weights = np.zeros((target, source), np.float32)
    weights[np.arange(target), left] = left + 1 - at
    weights[np.arange(target), np.minimum(left + 1, source - 1)] += at - left
    return weights


def by_products(image: Tensor, height: int, width: int) -> Tensor:
    """`enlarged` as two matrix products with constants."""
    source = image.shape[-2:]
    rows, columns = (torch.from_numpy(bilinear_weights(a, b)).to(image.device) for a, b in zip(source, (height, width), strict=True))
    return rows @ (image @ columns.T)


def enlarged(image: Tensor, height: int, width: int) -> Tensor:
    """``[N, C, h, w]`` -> ``[N, C, height, width]``, both at least as large, bilinear."""
    if image.shape[-2:] == (height, width):
        return image
    if torch.compiler.is_exporting():
        return by_products(image, height, width)
    return F.interpolate(image, (height, width), mode="bilinear", align_corners=False)

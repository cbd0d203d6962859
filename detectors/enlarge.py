"""Bilinear enlarging as two matrix products: runtimes work them out faster than their own operator, which INT8 does not know at all."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
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


def enlarged(image: Tensor, height: int, width: int) -> Tensor:
    """float32 ``[N, C, h, w]`` -> ``[N, C, height, width]``, both at least as large, bilinear and in float32 whatever a fit runs in."""
    source = image.shape[-2:]
    if source == (height, width):
        return image
    rows, columns = (torch.from_numpy(bilinear_weights(a, b)).to(image.device) for a, b in zip(source, (height, width), strict=True))
    with torch.autocast(image.device.type, enabled=False):
        return rows @ (image @ columns.T)

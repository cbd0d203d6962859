"""Residuals of an image and its reconstruction, measured by those of good images. No paper's: see the ablation "without whitening".

A network fitted for minutes does not reconstruct a random texture, so that its largest residuals are the texture's own. What a
defect changes lies in directions, and at places, where good images have next to none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.enlarge import enlarged
from detectors.images import as_input

RIDGE = 1e-3  # added to the variances: no direction counts as certain
GRID = 32  # cells along a side of the image for which typical residuals are kept


def whitening_matrix(moment: Tensor) -> Tensor:
    """The matrix that makes vectors of mean outer product ``[C, C]`` uncorrelated, each of mean square 1, and changes them least."""
    scale = moment.double().diagonal().clamp_min(1e-12).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * moment.double() * scale)
    return ((vectors * (values.clamp_min(0) + RIDGE).rsqrt()) @ vectors.T * scale).float()


class Whitening(nn.Module):
    """Residual vectors in units of their deviation on good images (as in the Mahalanobis distance), averaged over 5x5 positions.

    Averages let a texture's random residuals cancel, before anything is squared, and those of a shade add up.
    """

    matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(channels)[:, :, None, None])

    def set(self, moment: Tensor) -> None:
        """Take the mean outer product ``[C, C]`` of residual vectors of good images."""
        self.matrix.copy_(whitening_matrix(moment)[:, :, None, None])

    def forward(self, residual: Tensor) -> Tensor:
        """``[N, C, h, w]`` -> ``[N, C, h, w]``."""
        return F.avg_pool2d(F.conv2d(residual, self.matrix), 5, 1, 2, count_include_pad=False)


class TypicalMap(nn.Module):
    """Divides an anomaly map by the good images' mean map at each place, so that edges of a part do not count as defects."""

    typical: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("typical", torch.ones(1, 1, GRID, GRID))

    def set(self, maps: Tensor) -> None:
        """Take the mean anomaly map ``[1, 1, H, W]`` of good images."""
        cells = F.adaptive_avg_pool2d(maps, GRID)
        self.typical.copy_(F.avg_pool2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3, 1) + 0.1 * cells.mean() + 1e-12)

    def forward(self, result: Tensor) -> Tensor:
        """``[N, 1, H, W]`` -> ``[N, 1, H, W]``."""
        return result / enlarged(self.typical, *result.shape[-2:])


def in_batches(pixels: NDArray[np.uint8], size: int = 8) -> Iterator[Tensor]:
    """Images uint8 ``[N, H, W, C]`` as the network takes them, ``size`` at a time."""
    for begin in range(0, len(pixels), size):
        yield as_input(pixels[begin:begin + size])


def mean_outer_products(residuals: Callable[[Tensor], list[Tensor]], pixels: NDArray[np.uint8]) -> list[Tensor]:
    """The mean outer products ``[C, C]`` of the residual vectors ``[N, C, h, w]``, one list entry each, over good images."""
    totals: list[Tensor] = []
    count = 0
    for image in in_batches(pixels):
        parts = [r.double() for r in residuals(image)]
        products = [torch.einsum("nchw,ndhw->cd", r, r) / (r.shape[2] * r.shape[3]) for r in parts]
        totals = [a + b for a, b in zip(totals, products, strict=True)] if totals else products
        count += len(image)
    return [total / count for total in totals]


def mean_map(network: Callable[[Tensor], Tensor], pixels: NDArray[np.uint8]) -> Tensor:
    """The mean of a network's maps over good images: ``[1, 1, H, W]``."""
    return torch.stack([network(image).sum(0) for image in in_batches(pixels)]).sum(0)[None] / len(pixels)

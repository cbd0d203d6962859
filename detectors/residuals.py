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
    """Divides an anomaly map by the good images' mean map at each place, so that edges of a part do not count as defects.

    A mean over few images is off by chance, and a texture has no places at all: there, what chance made low would look like a defect. So
    the means are drawn towards that of all places by the share of their variance that chance explains (Efron and Morris, 1973).
    """

    typical: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("typical", torch.ones(1, 1, GRID, GRID))

    def set(self, cells: Tensor) -> None:
        """Take the anomaly maps of good images, ``[N, 1, 32, 32]`` as `cell_maps` gives them."""
        cells = F.avg_pool2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3, 1)
        means = cells.mean(0, keepdim=True)
        typical = means.mean() + share_of_places(cells.flatten(1)) * (means - means.mean())
        self.typical.copy_(typical + 0.1 * means.mean() + 1e-12)

    def forward(self, result: Tensor) -> Tensor:
        """``[N, 1, H, W]`` -> ``[N, 1, H, W]``."""
        return result / enlarged(self.typical, *result.shape[-2:])


def share_of_places(cells: Tensor) -> float:
    """How much of the variance of the places' means is the places' own, and not chance: 0 to 1. cells: ``[images, places]``.

    1 - 1/F, with the F statistic of a two-way analysis of variance: chance is what is left without each image's and each place's mean.
    """
    cells = cells.double()
    images, places = cells.shape
    between = cells.mean(0).var()
    if images < 2 or not between > 0:
        return 0.0
    rest = cells - cells.mean(0) - cells.mean(1, keepdim=True) + cells.mean()
    chance = rest.square().sum() / ((images - 1) * (places - 1)) / images
    return max(0.0, float(1 - chance / between))


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


def cell_maps(network: Callable[[Tensor], Tensor], pixels: NDArray[np.uint8]) -> Tensor:
    """A network's maps of good images, each as the means of 32x32 cells: ``[N, 1, 32, 32]``."""
    return torch.cat([F.adaptive_avg_pool2d(network(image), GRID) for image in in_batches(pixels)])

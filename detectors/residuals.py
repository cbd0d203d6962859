"""Residuals between an image and its reconstruction, normalised by those of good images.

This is in none of the papers; the ablations "without whitening" and "without the typical map" measure it. A network
fitted for minutes cannot reconstruct a random texture, so the largest residuals are the texture's own. A defect changes
the image in directions, and at positions, where good images have almost no residual.
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

RIDGE = 1e-3  # added to the variances, so that no direction is amplified without limit
GRID = 32  # cells along each side of the image for which a typical value is kept


def whitening_matrix(moment: Tensor) -> Tensor:
    """The symmetric (ZCA) whitening matrix ``[C, C]`` of vectors whose mean outer product ``[C, C]`` is ``moment``.

    Whitened vectors are uncorrelated, with a mean square of 1 in each component.
    """
    scale = moment.double().diagonal().clamp_min(1e-12).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * moment.double() * scale)
    return ((vectors * (values.clamp_min(0) + RIDGE).rsqrt()) @ vectors.T * scale).float()


class Whitening(nn.Module):
    """Divides residual vectors by their deviation on good images (as the Mahalanobis distance does), then averages 5x5.

    Averaging before anything is squared cancels a texture's random residuals and keeps those of a changed shade.
    """

    matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(channels)[:, :, None, None])

    def set(self, moment: Tensor) -> None:
        """Set the matrix from the mean outer product ``[C, C]`` of the residual vectors of good images."""
        self.matrix.copy_(whitening_matrix(moment)[:, :, None, None])

    def forward(self, residual: Tensor) -> Tensor:
        """``[N, C, h, w]`` -> ``[N, C, h, w]``."""
        return F.avg_pool2d(F.conv2d(residual, self.matrix), 5, 1, 2, count_include_pad=False)


class TypicalMap(nn.Module):
    """Divides an anomaly map by the good images' mean map at each position, so that a part's edges are no defects.

    A mean over few images contains sampling noise, and on a texture a position has no meaning at all: a mean that is
    low by chance would make a defect appear. So the means are shrunk towards the mean of all positions, by the share of
    their variance that sampling noise explains (Efron and Morris, 1973).
    """

    typical: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("typical", torch.ones(1, 1, GRID, GRID))

    def set(self, cells: Tensor) -> None:
        """Set the typical map from good images' anomaly maps ``[N, 1, 32, 32]``, as `cell_maps` returns them."""
        cells = F.avg_pool2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3, 1)
        means = cells.mean(0, keepdim=True)
        typical = means.mean() + share_of_places(cells.flatten(1)) * (means - means.mean())
        self.typical.copy_(typical + 0.1 * means.mean() + 1e-12)

    def forward(self, result: Tensor) -> Tensor:
        """``[N, 1, H, W]`` -> ``[N, 1, H, W]``."""
        return result / enlarged(self.typical, *result.shape[-2:])


def share_of_places(cells: Tensor) -> float:
    """The share (0..1) of the variance between the positions' means that sampling noise does not explain.

    cells: ``[images, positions]``. The share is 1 - 1/F, with the F statistic of a two-way analysis of variance: the
    noise is what remains after subtracting each image's and each position's mean.
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
    """Images uint8 ``[N, H, W, C]`` as network input (see `as_input`), ``size`` at a time."""
    for begin in range(0, len(pixels), size):
        yield as_input(pixels[begin:begin + size])


def mean_outer_products(residuals: Callable[[Tensor], list[Tensor]], pixels: NDArray[np.uint8]) -> list[Tensor]:
    """The mean outer product ``[C, C]`` of residual vectors over good images, for each entry of ``residuals``.

    residuals: maps network input to a list of ``[N, C, h, w]``. pixels: uint8 ``[N, H, W, C]``.
    """
    totals: list[Tensor] = []
    count = 0
    for image in in_batches(pixels):
        parts = [r.double() for r in residuals(image)]
        products = [torch.einsum("nchw,ndhw->cd", r, r) / (r.shape[2] * r.shape[3]) for r in parts]
        totals = [a + b for a, b in zip(totals, products, strict=True)] if totals else products
        count += len(image)
    return [total / count for total in totals]


def cell_maps(network: Callable[[Tensor], Tensor], pixels: NDArray[np.uint8]) -> Tensor:
    """The network's maps of images uint8 ``[N, H, W, C]``, averaged over 32x32 cells: ``[N, 1, 32, 32]``."""
    return torch.cat([F.adaptive_avg_pool2d(network(image), GRID) for image in in_batches(pixels)])

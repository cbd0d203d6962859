"""Enlarging as matrix products: what a graph does in place of what torch does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detectors.enlarge import by_products


@pytest.mark.parametrize(("source", "target"),
                         [((5, 8), (20, 16)), ((1, 2), (4, 7)), ((3, 6), (3, 6)), ((7, 5), (7, 9))])
def test_it_is_bilinear_interpolation(source, target):
    image = torch.rand(2, 3, *source)
    torch.testing.assert_close(by_products(image, *target),
                               F.interpolate(image, target, mode="bilinear", align_corners=False))

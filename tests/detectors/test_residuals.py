"""What residuals of good images tell: whitening and typical maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detectors.residuals import (
    GRID,
    TypicalMap,
    Whitening,
    cell_maps,
    mean_outer_products,
    share_of_places,
    whitening_matrix,
)

RNG = np.random.default_rng(0)


def test_whitened_vectors_are_uncorrelated_with_a_mean_square_of_1():
    vectors = RNG.standard_normal((5000, 6)) @ RNG.standard_normal((6, 6)) * (1, 10, 0.1, 1, 1, 3)
    white = vectors @ whitening_matrix(torch.from_numpy(vectors.T @ vectors / len(vectors))).double().numpy().T
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=0.15)


def test_a_direction_that_good_images_never_take_does_not_become_infinite():
    matrix = whitening_matrix(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    assert matrix.isfinite().all() and matrix.abs().max() < 50
    assert whitening_matrix(torch.zeros(2, 2)).isfinite().all()


def test_mean_outer_products_are_means_over_all_images_and_positions():
    pixels = RNG.integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)
    (got,) = mean_outer_products(lambda image: [image], pixels)
    flat = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(got, flat.T @ flat / len(flat), rtol=1e-5)


def test_cells_are_means_of_each_image_s_map():
    pixels = RNG.integers(0, 256, (11, 64, 96, 3), dtype=np.uint8)
    cells = cell_maps(lambda image: image[:, :1], pixels)
    np.testing.assert_allclose(cells[:, 0], pixels[..., 0].reshape(11, GRID, 2, GRID, 3).mean(axis=(2, 4)) / 255,
                               rtol=1e-5)


def test_averages_come_after_whitening_and_before_squares():
    whitening = Whitening(2)
    residual = torch.zeros(1, 2, 9, 9)
    residual[0, 0, 4, 4] = 25.0
    assert whitening(residual)[0, 0, 2:7, 2:7].allclose(torch.ones(5, 5)) and whitening(residual).sum() == 25


def good_cells(images: int = 12) -> torch.Tensor:
    """Maps of good images of an object: ten times as large on the right as on the left."""
    cells = torch.from_numpy(RNG.uniform(0.9, 1.1, (images, 1, GRID, GRID)).astype(np.float32))
    cells[..., GRID // 2:] *= 10
    return cells


def test_a_map_is_divided_by_the_typical_one_of_its_place():
    typical = TypicalMap()
    typical.set(good_cells())
    good = torch.ones(1, 1, 128, 128)
    good[..., 64:] = 10
    result = typical(good)
    # the floor of a tenth of the mean is in it
    assert 0.9 < float(result[..., 100:].mean() / result[..., :28].mean()) < 1.6
    assert float(typical(2 * good).mean()) > 1.9 * float(result.mean())


def test_a_texture_has_no_typical_places():
    texture = torch.from_numpy(RNG.gamma(1, 1, (12, 1, GRID, GRID)).astype(np.float32))
    typical = TypicalMap()
    typical.set(texture)
    assert typical.typical.std() < 0.05 * typical.typical.mean()
    assert texture.mean(0).std() > 0.2 * texture.mean()  # by chance


def test_the_share_of_the_places_is_what_was_put_into_them():
    places, chance = RNG.standard_normal((1, 4000)), RNG.standard_normal((25, 4000))
    level = 3 * RNG.standard_normal((25, 1))  # of an image as a whole: says nothing of places
    for size in (0.0, 0.1, 0.5):
        share = share_of_places(torch.from_numpy(level + size * places + chance))
        assert share == pytest.approx(size**2 / (size**2 + 1 / 25), abs=0.06)
    assert share_of_places(good_cells().flatten(1)) > 0.99


def test_one_image_says_nothing_of_places():
    assert share_of_places(torch.rand(1, 10)) == 0
    typical = TypicalMap()
    typical.set(good_cells(1))
    assert typical.typical.isfinite().all() and typical.typical.std() < 1e-6

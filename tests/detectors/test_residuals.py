"""What residuals of good images tell: whitening and typical maps."""

from __future__ import annotations

import numpy as np
import torch

from detectors.residuals import TypicalMap, Whitening, mean_map, mean_outer_products, whitening_matrix

RNG = np.random.default_rng(0)


def test_whitened_vectors_are_uncorrelated_with_a_mean_square_of_1():
    vectors = RNG.standard_normal((5000, 6)) @ RNG.standard_normal((6, 6)) * (1, 10, 0.1, 1, 1, 3)
    white = vectors @ whitening_matrix(torch.from_numpy(vectors.T @ vectors / len(vectors))).double().numpy().T
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=0.15)


def test_a_direction_that_good_images_never_take_does_not_become_infinite():
    matrix = whitening_matrix(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    assert matrix.isfinite().all() and matrix.abs().max() < 50
    assert whitening_matrix(torch.zeros(2, 2)).isfinite().all()


def test_mean_outer_products_and_mean_map_are_means_over_all_images_and_positions():
    pixels = RNG.integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)
    (got,) = mean_outer_products(lambda image: [image], pixels)
    flat = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(got, flat.T @ flat / len(flat), rtol=1e-5)
    np.testing.assert_allclose(mean_map(lambda image: image[:, :1], pixels)[0, 0], pixels[..., 0].mean(axis=0) / 255, rtol=1e-5)


def test_averages_come_after_whitening_and_before_squares():
    whitening = Whitening(2)
    residual = torch.zeros(1, 2, 9, 9)
    residual[0, 0, 4, 4] = 25.0
    assert whitening(residual)[0, 0, 2:7, 2:7].allclose(torch.ones(5, 5)) and whitening(residual).sum() == 25


def test_a_map_is_divided_by_the_typical_one_of_its_place():
    typical = TypicalMap()
    good = torch.ones(1, 1, 128, 128)
    good[..., 64:] = 10
    typical.set(good)
    result = typical(good)
    assert 0.9 < float(result[..., 100:].mean() / result[..., :28].mean()) < 1.6  # the floor of a tenth of the mean is in it
    assert float(typical(2 * good).mean()) > 1.9 * float(result.mean())

"""SIDN against plain NumPy versions of the paper's equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detectors.artificial_defects import gaussian_noise_defects, random_mask, smooth_noise
from detectors.phases import Batch
from detectors.sidn import (
    GlobalSemanticRelation,
    Sidn,
    centre_separation_loss,
    clustering_loss,
    segmentation_loss,
    sharpened_target,
    soft_assignment,
)

RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def equations_11_and_15(z, c):
    q = np.zeros((len(z), len(c)))
    for i, zi in enumerate(z):
        for j, cj in enumerate(c):
            q[i, j] = (1 + np.sum((zi - cj) ** 2) / 1.0) ** (-(1 + 1) / 2)
        q[i] /= q[i].sum()
    f = q.sum(axis=0)
    p = q**2 / f
    return q, p / p.sum(axis=1, keepdims=True)


def test_assignments_and_targets_are_equations_11_to_16():
    z, c = numbers(20, 6), numbers(4, 6)
    q, p = equations_11_and_15(z, c)
    got = soft_assignment(torch.from_numpy(z), torch.from_numpy(c))
    np.testing.assert_allclose(got, q, rtol=1e-5)
    np.testing.assert_allclose(sharpened_target(got), p, rtol=1e-4)


def test_the_clustering_loss_is_equation_17_as_a_mean_and_its_target_is_fixed():
    z, c = numbers(20, 6), numbers(4, 6)
    q, p = equations_11_and_15(z, c)
    features, centres = torch.from_numpy(z).requires_grad_(), torch.from_numpy(c).requires_grad_()
    loss = clustering_loss(features, centres)
    assert loss.item() == pytest.approx((p * np.log(p / q)).sum() / len(z), rel=1e-4)
    assert not sharpened_target(soft_assignment(features, centres)).requires_grad
    loss.backward()
    assert features.grad.abs().sum() > 0 and centres.grad.abs().sum() > 0


def test_the_centre_loss_is_equation_18():
    t, d = numbers(5, 8), numbers(5, 8)
    expected = np.mean([[ti @ dk / np.linalg.norm(ti) / np.linalg.norm(dk) for dk in d] for ti in t])
    assert centre_separation_loss(torch.from_numpy(t), torch.from_numpy(d)).item() == pytest.approx(expected, rel=1e-4)


def test_the_segmentation_loss_is_equation_5():
    a, b, m = numbers(2, 1, 4, 4), numbers(2, 1, 4, 4), (numbers(2, 1, 4, 4) > 0).astype(np.float32)
    t, d = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
    texture = np.abs(0.1 * (1 - m) * np.log(t) + m * np.log(1 - t)).mean()
    expected = texture + np.abs(0.1 * (1 - m) * np.log(1 - d) + m * np.log(d)).mean()
    got = segmentation_loss(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(m), 0.1)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_gsrm_is_equations_23_and_24():
    module = GlobalSemanticRelation(6).eval()
    z, c = numbers(1, 6, 3, 5), numbers(4, 6)
    key, value = (np.einsum("oi,ihw->hwo", layer.weight.detach()[:, :, 0, 0], z[0]) + layer.bias.detach().numpy()
                  for layer in (module.key, module.value))
    logits = key.reshape(15, 6) @ c.T
    attention = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    expected = value.reshape(15, 6) + attention @ c
    got = module(torch.from_numpy(z), torch.from_numpy(c))[0].permute(1, 2, 0).reshape(15, 6)
    np.testing.assert_allclose(got.detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_map_is_equation_26_and_has_the_images_size():
    net = Sidn(width=2).eval()
    image = torch.rand(2, 1, 64, 96)
    texture, defect = net.segment(*net.decompose(image))
    expected = 0.5 * (1 - torch.sigmoid(texture)) + 0.5 * torch.sigmoid(defect)
    torch.testing.assert_close(net.fused(image), expected)
    assert net.fused(image).shape == image.shape


def test_shapes_and_setup_are_the_papers():
    net = Sidn()
    z = net.fem(torch.zeros(1, 1, 256, 256))
    assert z.shape == (1, 32, 128, 128)
    z_t, z_d = net.decompose(torch.rand(1, 1, 256, 256))
    assert z_t.shape == z_d.shape == (1, 256, 16, 16)
    assert (z_t >= 0).all() and (z_d >= 0).all()  # or eq 8 has no lower bound
    assert net.texture_centres.shape == net.defect_centres.shape == (12, 256)
    weights = (net.background_weight, net.separation_weight, net.clustering_weight, net.centre_weight, net.fusion)
    assert weights == (0.1, 0.01, 0.01, 0.01, 0.5)


def test_every_loss_term_reaches_the_weights_it_is_about():
    net = Sidn(width=2)
    image, mask = torch.rand(2, 1, 64, 64), (torch.rand(2, 1, 64, 64) > 0.8).float()
    terms = net.losses(Batch(image, image, mask))
    assert set(terms) == {"segmentation", "separation", "clustering", "centres"}
    for name, parameter in {"segmentation": net.texture_sm[0].weight, "separation": net.defect_fsem[0].body[0].weight,
                            "clustering": net.texture_centres, "centres": net.defect_centres}.items():
        (gradient,) = torch.autograd.grad(terms[name], parameter, retain_graph=True)
        assert gradient.abs().sum() > 0, name


def test_artificial_defects_follow_equation_1():
    rng = np.random.default_rng(3)
    image = np.clip(0.5 + 0.1 * smooth_noise(rng, 96, 96, 4), 0, 1)[..., None]
    changed = 0
    for _ in range(50):
        defective, mask = gaussian_noise_defects(image, rng)
        assert defective.dtype == mask.dtype == np.float32 and defective.shape == mask.shape == image.shape
        assert set(np.unique(mask)) <= {0, 1} and defective.min() >= 0 and defective.max() <= 1
        far = np.pad(mask[..., 0], 8)  # the soft edge of a defect reaches a few px beyond its mask
        shifted = [np.roll(far, (dy, dx), (0, 1)) for dy in range(-8, 9) for dx in range(-8, 9)]
        near = np.max(shifted, axis=0)[8:-8, 8:-8]
        assert np.array_equal(defective[near == 0], image[near == 0])
        changed += bool(np.abs(defective - image)[mask > 0].mean() > 0.005) if mask.any() else 0
    assert changed >= 40


def test_random_masks_come_in_all_sizes():
    rng = np.random.default_rng(0)
    shares = np.array([random_mask(rng, 128, 128).mean() for _ in range(300)])
    assert (shares > 0).mean() > 0.8
    assert (shares[shares > 0] < 0.01).mean() > 0.15 and (shares > 0.05).mean() > 0.1 and shares.max() < 0.8

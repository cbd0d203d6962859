"""NDP-Net against plain NumPy versions of the paper's equations."""

from __future__ import annotations

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from detectors.backbones import load_backbone
from detectors.fit import Budget, Settings, fit, freeze_all_but
from detectors.images import miniatures, most_typical
from detectors.natural import NaturalImages
from detectors.ndp_net import (
    NdpNet,
    defect_perception_loss,
    feature_repair_loss,
    focal_loss,
    fuse,
    repair,
    resized,
)
from detectors.phases import Batch
from detectors.run import read_run
from export.onnx import export_run, parity_images, torch_maps

RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def patches(features, k):
    """Non-overlapping patches of ``[C, h, w]``, row by row: ``[P, C, k, k]``."""
    _, h, w = features.shape
    return np.stack([features[:, y:y + k, x:x + k] for y in range(0, h, k) for x in range(0, w, k)])


@pytest.mark.parametrize("k", [2, 4])
def test_the_repair_is_equations_3_to_5(k):
    features, reference = numbers(2, 3, 8, 4), numbers(1, 3, 8, 8)
    b = patches(reference[0], k)
    expected = np.zeros_like(features)
    for n in range(2):
        for i, p in enumerate(patches(features[n], k)):
            s = np.array([(p * bj).sum() / np.linalg.norm(p) / np.linalg.norm(bj) for bj in b])
            s = np.exp(s) / np.exp(s).sum()
            y, x = i // (4 // k) * k, i % (4 // k) * k
            expected[n, :, y:y + k, x:x + k] = sum(sj * bj for sj, bj in zip(s, b, strict=True))
    np.testing.assert_allclose(repair(torch.from_numpy(features), torch.from_numpy(reference), k), expected, rtol=1e-4,
                               atol=1e-5)


def test_the_fusion_is_equations_7_and_8():
    candidates, maps = numbers(2, 3, 4, 5, 6), numbers(2, 3, 4, 5, 6)
    weights = np.exp(maps) / np.exp(maps).sum(axis=1, keepdims=True)
    got = fuse(*([torch.from_numpy(x[:, i]) for i in range(3)] for x in (candidates, maps)))
    np.testing.assert_allclose(got, (weights * candidates).sum(axis=1), rtol=1e-4, atol=1e-5)


def test_the_defect_perception_loss_is_equation_2():
    clean, defective = [numbers(2, 3, 8, 8), numbers(2, 5, 4, 4)], [numbers(2, 3, 8, 8), numbers(2, 5, 4, 4)]
    mask = np.zeros((2, 1, 8, 8), np.float32)
    mask[0, :, 2:5, 3:8] = 1  # the second view is good
    total = 0.0
    for a, b in zip(clean, defective, strict=True):
        m = ((a[0] - b[0]) ** 2).mean(axis=0)
        m = (m - m.min()) / (m.max() - m.min())
        factor = 8 // m.shape[0]
        small = mask[0, 0].reshape(m.shape[0], factor, m.shape[1], factor).mean(axis=(1, 3))
        total += ((m - small) ** 2).mean() / 2
    got = defect_perception_loss([torch.from_numpy(x) for x in clean], [torch.from_numpy(x) for x in defective],
                                 torch.from_numpy(mask))
    assert float(got) == pytest.approx(total, rel=1e-4)


def test_the_feature_repair_loss_is_equation_9():
    a, b = [numbers(2, 3, 4, 4) for _ in range(3)], [numbers(2, 3, 4, 4) for _ in range(3)]
    expected = sum(((x - y) ** 2).mean() for x, y in zip(a, b, strict=True)) / 2
    got = feature_repair_loss([*map(torch.from_numpy, a)], [*map(torch.from_numpy, b)])
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_the_focal_loss_is_that_of_lin_et_al():
    p, t = RNG.uniform(0.05, 0.95, (2, 1, 3, 3)).astype(np.float32), (RNG.random((2, 1, 3, 3)) > 0.5).astype(np.float32)
    pt = np.where(t == 1, p, 1 - p)
    got = focal_loss(torch.from_numpy(p), torch.from_numpy(t))
    assert float(got) == pytest.approx((-(1 - pt) ** 2 * np.log(pt)).mean(), rel=1e-4)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    network = NdpNet(width=2, size=128).eval()
    network.use_backbone(load_backbone("vgg16", None)[0])
    network.set_reference(RNG.integers(0, 256, (5, 128, 128, 3), dtype=np.uint8))
    return network


def test_the_map_is_equation_11_and_the_encoder_runs_once_on_the_image_and_once_on_the_reconstruction(net):
    image = torch.rand(2, 3, 128, 128)
    features = net.encode(image)
    assert [tuple(f.shape[1:]) for f in features] == [(2, 128, 128), (4, 64, 64), (8, 32, 32), (16, 16, 16), (16, 8, 8)]
    reconstruction = net.decode(*net.repaired(features))
    parts = [part.detach().numpy() for part in net.maps(features, net.encode(reconstruction))]
    up = [np.stack([cv2.resize(m[0], (128, 128), interpolation=cv2.INTER_LINEAR) for m in part]) for part in parts]
    calls = []
    hook = net.encoder[0].register_forward_hook(lambda *_: calls.append(1))
    result = net.difference(image).detach().numpy()
    hook.remove()
    np.testing.assert_allclose(result[:, 0], 0.2 * up[0] + 0.2 * up[1] + 0.6 * up[2], atol=1e-5)
    assert len(calls) == 2 and reconstruction.shape == image.shape


def test_the_map_is_measured_by_that_of_good_images():
    network, pixels = NdpNet(width=2, size=64).eval(), RNG.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        network.finish(pixels)
        result = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert float(result.mean()) == pytest.approx(1 / 1.1, rel=0.05)
    assert NdpNet(width=2, size=64, typical=False).typical is None


def test_the_references_features_are_constants_of_the_most_typical_good_image():
    pixels = RNG.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    network = NdpNet(width=2, size=64).eval()
    network.set_reference(pixels)
    chosen = pixels[most_typical(miniatures(pixels))]
    np.testing.assert_allclose(network.reference[0].permute(1, 2, 0) * 255, chosen, atol=1e-3)
    wanted = network.encode(network.reference)[2:]
    for i, feature in zip((3, 4, 5), wanted, strict=True):
        torch.testing.assert_close(getattr(network, f"reference_features_{i}"), feature)


def test_the_perceptual_loss_is_a_mean_of_l1_distances(net):
    a, b = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    backbone = net._perceptual[0]
    expected = np.mean([np.abs(x.numpy() - y.numpy()).mean() for x, y in zip(backbone(a), backbone(b), strict=True)])
    assert float(net.perceptual_loss(a, b)) == pytest.approx(float(expected), rel=1e-4)


def batch(count=2, side=64):
    clean = torch.rand(count, 3, side, side)
    mask = torch.zeros(count, 1, side, side)
    mask[:, :, 10:30, 20:40] = 1
    return Batch(clean, torch.where(mask > 0, torch.rand_like(clean), clean), mask)


@pytest.mark.parametrize("arguments", [{}, *NdpNet.ablations.values()], ids=str)
def test_phases_train_what_the_paper_trains(net, arguments):
    network = NdpNet(width=2, size=64, **arguments)
    network.use_backbone(net._perceptual[0])
    first, second = network.phases(128)
    assert first.share + second.share == pytest.approx(1) and first.defective == 1
    frozen = {"perceive": ("attention", "segment"), "repair": ("encoder",)}
    for phase in (first, second):
        freeze_all_but(network, phase.trained)
        terms = phase.losses(batch())
        torch.stack(list(terms.values())).sum().backward()
        for name, parameter in network.named_parameters():
            learnt = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert learnt != name.startswith(frozen[phase.name]), (phase.name, name)
        network.zero_grad()
    names = {"reconstruction", "perceptual"} | ({"feature repair"} if network.attention is not None else set())
    assert set(terms) == names | ({"segmentation"} if network.segment is not None else set())


def test_the_losses_are_equations_14_and_17(net):
    data = batch()
    first = net.first_losses(data)
    clean, defective = net.encode(data.clean), net.encode(data.image)
    reconstruction = net.decode(*clean[2:])
    torch.testing.assert_close(first["reconstruction"], 100 * (data.clean - reconstruction).square().mean())
    torch.testing.assert_close(first["perceptual"], net.perceptual_loss(reconstruction, data.clean))
    torch.testing.assert_close(first["defect perception"], defect_perception_loss(clean, defective, data.mask),
                               rtol=1e-3, atol=1e-5)
    second = net.second_losses(data)
    repaired = net.repaired(defective)
    reconstruction = net.decode(*repaired)
    torch.testing.assert_close(second["reconstruction"], 100 * (data.clean - reconstruction).square().mean())
    torch.testing.assert_close(second["feature repair"], feature_repair_loss(repaired, clean[2:]))
    maps = net.maps(defective, net.encode(reconstruction))
    torch.testing.assert_close(second["segmentation"],
                               torch.stack([focal_loss(m, resized(data.mask, m)) for m in maps]).mean())


def test_artificial_defects_are_equation_1_with_natural_images_outside_which_nothing_changes():
    rng = np.random.default_rng(1)
    image = np.clip(0.5 + 0.1 * numbers(96, 96, 3), 0, 1).astype(np.float32)
    natural, network, changed = NaturalImages(), NdpNet(width=2, size=64), 0
    for _ in range(40):
        defective, mask = network.make_defects(image, rng, natural)
        assert defective.shape == image.shape and mask.shape == (96, 96, 1)
        assert defective.dtype == mask.dtype == np.float32
        near = cv2.dilate(mask[..., 0], np.ones((17, 17), np.uint8))
        assert np.array_equal(defective[near == 0], image[near == 0])
        changed += bool(mask.any() and np.abs(defective - image)[mask[..., 0] > 0].mean() > 0.005)
    assert changed > 30


@pytest.mark.parametrize("arguments", [{}, *NdpNet.ablations.values()], ids=str)
def test_every_variant_fits_exports_and_agrees(cloth, tmp_path, arguments):
    fit(Settings("ndp-net", size=64, width=2, arguments=arguments), cloth, tmp_path / "run", Budget(steps=6))
    if arguments not in ({}, {"segmentation": False}):  # the others' graphs have less than the whole
        return
    _, difference = export_run(tmp_path / "run", tmp_path / "bundle")
    assert difference < 1e-3
    record, network = read_run(tmp_path / "run")
    assert record.backbone.startswith("efficientnet-lite0")
    assert not [k for k in network.state_dict() if "perceptual" in k]
    images = parity_images(record, network)[:3]
    expected = torch_maps(network, images)
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model" / "fp32.onnx",
                                           providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images})
    assert np.abs(got - expected).max() < 1e-3 * np.ptp(expected)

"""Local OCC against plain NumPy versions of the paper's equations, and its matching of parts that come moved."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from detectors.artificial_defects import smooth_noise
from detectors.backbones import load_backbone
from detectors.batches import make_batch
from detectors.fit import Budget, Settings, fit, freeze_all_but
from detectors.image_matching import parts_come_moved
from detectors.images import as_input, positions_differ
from detectors.local_occ import LocalOcc, half_cosine_distance, localisation_loss
from detectors.natural import NaturalImages
from detectors.phases import Batch
from export.onnx import export_run, torch_maps
from simulation.render.surface import Surface

RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("resnet18", None)[0]


@pytest.fixture(scope="module")
def turned():
    surface = Surface("printed", 4, 128, turned=True)
    return np.stack([surface.part(index).frame for index in range(24)])


def test_the_distance_is_half_of_equation_4():
    a, b = numbers(2, 5, 3, 4), numbers(1, 5, 3, 4)
    expected = np.zeros((2, 1, 3, 4))
    for n in range(2):
        for i in range(3):
            for j in range(4):
                u, v = a[n, :, i, j], b[0, :, i, j]
                expected[n, 0, i, j] = 0.5 * (1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))
    np.testing.assert_allclose(half_cosine_distance(torch.from_numpy(a), torch.from_numpy(b)), expected, rtol=1e-4,
                               atol=1e-6)


def test_the_localisation_loss_is_equation_5_and_without_defects_equation_3():
    distance = RNG.uniform(0, 0.3, (2, 1, 4, 4)).astype(np.float32)
    mask = (RNG.random((2, 1, 4, 4)) > 0.5).astype(np.float32)
    expected = 0.0
    for d, m in zip(distance.ravel(), mask.ravel(), strict=True):
        expected += (1 - m) * d + m * max(0, 0.1 - d)
    terms = localisation_loss(torch.from_numpy(distance), torch.from_numpy(mask), 0.1)
    assert float(sum(terms.values())) == pytest.approx(expected / distance.size, rel=1e-5)
    plain = localisation_loss(torch.from_numpy(distance), torch.zeros(2, 1, 4, 4), 0.1)
    assert float(sum(plain.values())) == pytest.approx(distance.mean(), rel=1e-5)


def test_the_matching_loss_is_equation_1_at_three_scales_in_each_pass(backbone, turned):
    net = LocalOcc(width=4, size=128, align=True)
    net.use_backbone(backbone)
    net.choose_template(turned)
    image = as_input(turned[:2])
    terms = net.matching_losses(Batch(image, image, torch.zeros(2, 1, 128, 128)))
    for factor in (2, 8, 32):  # N_R says "stay" at first, so I_M is the image
        small = [x.reshape(-1, 3, 128 // factor, factor, 128 // factor, factor).mean((3, 5))
                 for x in (image.numpy(), net.template.numpy())]
        for number in (1, 2):
            term = terms[f"pass {number} at 1/{factor}"].detach()
            assert float(term) == pytest.approx(np.square(small[0] - small[1]).mean(), rel=1e-3)
    assert len(terms) == 6


@pytest.mark.parametrize("whiten", [False, True])
def test_centres_are_means_over_good_images_of_reduced_features(backbone, turned, whiten):
    net = LocalOcc(width=4, size=128, align=False, target=8, whiten=whiten)
    net.use_backbone(backbone)
    net.set_centres(turned)
    image = as_input(turned)
    with torch.no_grad():
        mixed = net.mixed_features(image).double().numpy()
        seen = net.normalised(image).double().numpy()
    count, std = mixed.shape[1], mixed.std(axis=(0, 2, 3))
    scaled = mixed / std[:, None, None]
    flat = scaled.transpose(1, 0, 2, 3).reshape(count, -1)
    directions = np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, :8]
    centres = np.einsum("dk,dhw->khw", directions, scaled.mean(axis=0))
    centres /= np.linalg.norm(centres, axis=0)
    signs = np.sign((centres * net.centres[0].numpy()).sum((1, 2)))[:, None, None]
    np.testing.assert_allclose(net.centres[0].numpy(), centres * signs, atol=2e-3)
    if not whiten:
        np.testing.assert_allclose(seen, (mixed - mixed.mean(axis=(0, 2, 3), keepdims=True)) / std[:, None, None],
                                   rtol=2e-3, atol=0.01)
        return
    for part in np.split(seen, 3, axis=1):  # about the mean, the mean at each position, and each image's own mean
        white = part.transpose(1, 0, 2, 3).reshape(count, -1)
        assert abs(white @ np.ones(white.shape[1])).max() / white.shape[1] < 0.02
        squares = np.sort(np.linalg.eigvalsh(white @ white.T / white.shape[1]))
        # In units of the deviations, except for directions that hardly occur.
        assert squares[-1] < 1.01 and np.median(squares) > 0.5


def test_one_centre_for_all_is_the_same_everywhere(backbone, turned):
    net = LocalOcc(width=4, size=128, align=False, local=False)
    net.use_backbone(backbone)
    net.set_centres(turned)
    assert torch.allclose(net.centres, net.centres[:, :, :1, :1])


def test_the_map_is_the_geometric_mean_of_both_distances_divided_by_that_of_good_images(backbone, turned):
    net = LocalOcc(width=4, size=128, align=False).eval()
    net.use_backbone(backbone)
    net.set_centres(turned)
    image = as_input(turned[:3])
    with torch.no_grad():
        mixed = net.mixed_features(image)
        taught = half_cosine_distance(net.mapping(net.normalised(image)), net.centres).numpy()
        got = net.evidence(image).numpy()
        net.finish(turned)
        measured = net(as_input(turned)).numpy()
    away = mixed.numpy() - net.local_mean.numpy()
    matrix = net.local_whitening[:, :, 0, 0].numpy()
    # squared Mahalanobis, a channel's share
    squared = np.einsum("ndhw,de,nehw->nhw", away, matrix.T @ matrix, away)[:, None] / len(matrix)
    np.testing.assert_allclose(got, np.sqrt(taught * squared), rtol=1e-2, atol=2e-4)
    assert 0.7 < measured.mean() < 1.1, "1 on good images, less what keeps quiet places quiet"


@pytest.mark.parametrize("whiten", [True, False])
def test_the_first_layer_is_that_of_the_whitened_features(backbone, turned, whiten):
    torch.manual_seed(0)
    net = LocalOcc(width=8, size=128, backbone=backbone.name, align=False, whiten=whiten).eval()
    net.use_backbone(backbone)
    with torch.no_grad():
        net.set_centres(turned[:8])
        mixed = net.mixed_features(as_input(turned[8:10]))
        torch.testing.assert_close(net.first_layer(mixed - net.local_mean), net.mapping[0](net.whitened(mixed)),
                                   rtol=1e-3, atol=1e-4)


def test_the_papers_preset_adds_nothing_to_the_distance(backbone, turned):
    net = LocalOcc(**{**LocalOcc.presets["paper"].arguments, "size": 128, "width": 4}, align=False).eval()
    net.use_backbone(backbone)
    net.set_centres(turned)
    image = as_input(turned[:2])
    with torch.no_grad():
        torch.testing.assert_close(net.evidence(image),
                                   half_cosine_distance(net.mapping(net.normalised(image)), net.centres))


def test_disturbed_features_shall_be_beyond_the_margin(backbone, turned):
    net = LocalOcc(width=4, size=128, align=False, noise=0.5, margin=1.0).eval()
    net.use_backbone(backbone)
    net.set_centres(turned)
    image = as_input(turned[:2])
    batch = Batch(image, image, torch.zeros(2, 1, 128, 128))
    terms = net.localisation_losses(batch)
    assert set(terms) == {"good", "defective", "noise"} and 0 <= float(terms["noise"].detach()) <= 0.3
    with torch.no_grad():
        disturbed = [float(net.localisation_losses(batch)["noise"]) for net.noise in (1e-3, 100.0)]
    distance = half_cosine_distance(net.mapping(net.normalised(image)), net.centres)
    near = float((1 - distance).clamp_min(0).mean().detach())
    assert disturbed[0] == pytest.approx(0.3 * near, rel=0.05, abs=1e-4)
    assert abs(disturbed[1] - disturbed[0]) > 1e-4
    net.noise = 0.0
    assert set(net.localisation_losses(batch)) == {"good", "defective"}


def test_phases_train_what_the_paper_trains(backbone):
    net = LocalOcc(width=4, size=64, align=True)
    net.use_backbone(backbone)
    match, localise = net.phases(64)
    image, mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    mask[..., 10:30] = 1
    batch = Batch(image, image, mask)
    for phase, learns, stays in ((match, "matching.", "mapping."), (localise, "mapping.", "matching.")):
        freeze_all_but(net, phase.trained)
        names = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        assert names and all(name.startswith(learns) for name in names)
        assert not any(name.startswith(stays) for name in names)
        assert not net.features.training
        terms = phase.losses(batch)
        torch.stack(list(terms.values())).sum().backward()
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())
        net.zero_grad()
    assert sum(phase.share for phase in net.phases(64)) == 1


def test_the_map_is_warped_back_and_what_fell_outside_is_masked(backbone):
    net = LocalOcc(width=4, size=128, align=True).eval()
    net.use_backbone(backbone)
    net.matching.n_r[-1].bias.data = torch.tensor([1.0, 0.0, 0.5])  # shifted by 0.2 half sides, turned by 0.15
    image = torch.rand(1, 3, 128, 128)
    there = net.aligned(image)[1].detach()
    point = torch.tensor([0.3, -0.2])  # in the template's frame
    spot = (there[0, :, :2] @ point + there[0, :, 2] + 1) * 64 - 0.5  # where it is seen in the camera's frame
    column, row = ((point + 1) * 64 - 0.5).round().int().tolist()
    distance = torch.zeros(1, 1, 16, 16)
    distance[..., row // 8, column // 8] = 1
    net.evidence = lambda image: distance
    result = net(image)[0, 0].detach()
    peak = np.unravel_index(int(result.argmax()), result.shape)
    assert np.hypot(peak[1] - float(spot[0]), peak[0] - float(spot[1])) < 9
    net.evidence = lambda image: torch.ones(1, 1, 16, 16)
    covered = net(image)[0, 0].detach()
    assert float(covered.max()) == pytest.approx(1, abs=1e-4) and 0.4 < float((covered > 0.5).float().mean()) < 0.95


def test_matching_is_read_off_the_good_images(turned):
    still = Surface("printed", 4, 128)
    fixed = np.stack([still.part(index).frame for index in range(24)])
    web = Surface("woven", 4, 128)
    texture = np.repeat(np.stack([web.part(3 * index).frame for index in range(24)]), 3, axis=3)
    assert [parts_come_moved(pixels) for pixels in (turned, fixed, texture)] == [True, False, False]
    grain = np.stack([np.uint8(128 + 30 * np.clip(smooth_noise(RNG, 128, 128, 6), -3, 3)) for _ in range(24)])
    grain = grain[..., None].repeat(3, axis=3)
    assert [positions_differ(pixels) for pixels in (fixed, grain)] == [True, False]
    for pixels, given, settled in ((grain, None, False), (turned, None, True), (turned, False, False)):
        arguments = {"align": given}
        LocalOcc.settle(arguments, pixels, None)
        assert arguments == {"align": settled}


def test_artificial_defects_change_what_their_mask_says():
    rng = np.random.default_rng(1)
    image = np.clip(0.5 + 0.1 * numbers(96, 96, 3), 0, 1).astype(np.float32)
    net, natural, changed = LocalOcc(width=4, size=64), NaturalImages(), 0
    for _ in range(40):
        defective, mask = net.make_defects(image, rng, natural)
        assert defective.shape == image.shape and mask.shape == (96, 96, 1)
        assert defective.dtype == mask.dtype == np.float32
        assert set(np.unique(mask)) <= {0, 1} and defective.min() >= 0 and defective.max() <= 1
        near = cv2.dilate(mask[..., 0], np.ones((17, 17), np.uint8))
        assert np.array_equal(defective[near == 0], image[near == 0])
        changed += bool(np.abs(defective - image)[mask[..., 0] > 0].mean() > 0.005) if mask.any() else 0
    assert changed > 30


@pytest.mark.parametrize("arguments", [{}, *LocalOcc.ablations.values(), {"align": True}], ids=str)
def test_every_variant_fits_exports_and_agrees(cloth, tmp_path, arguments):
    fit(Settings("local-occ", size=64, width=4, arguments=arguments), cloth, tmp_path / "run", Budget(steps=4))
    if arguments not in ({}, {"align": True}, {"whiten": False}, {"untaught": False}):
        return  # the graph is the whole method's, or has less than that
    bundle, _ = export_run(tmp_path / "run", tmp_path / "bundle")
    import onnxruntime

    from detectors.run import read_run

    images = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / "model" / "fp32.onnx"),
                                           providers=["CPUExecutionProvider"])
    expected = torch_maps(read_run(tmp_path / "run")[1], images)
    np.testing.assert_allclose(session.run(None, {"image": images})[0], expected, atol=1e-3 * np.ptp(expected))
    assert bundle.card.detector == "local-occ"


def test_parts_that_come_turned_are_aligned(turned):
    """Half a minute of matching does not align to the pixel, but well on the way there."""
    torch.manual_seed(0)
    net, natural = LocalOcc(width=4, size=128, align=True), NaturalImages()
    phase = net.phases(128)[0]
    assert phase.start is not None
    phase.start(turned)
    freeze_all_but(net, phase.trained)
    optimizer = torch.optim.Adam(net.matching.parameters(), 1e-3)
    for step in range(120):
        terms = phase.losses(make_batch(net, phase, turned, natural, (0, 0, step)))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    net.eval()
    image = as_input(turned)
    with torch.no_grad():
        net.template_features.copy_(net.matching.n_p(net.template - 0.5))
        after = (net.aligned(image)[0] - net.template).square().mean()
    assert after < 0.7 * (image - net.template).square().mean()

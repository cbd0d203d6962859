"""AW-SSIM against plain NumPy versions of the paper's equations, its two stages, and its graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from detectors.artificial_defects import smooth_noise
from detectors.aw_ssim import (
    FLOOR,
    AwSsim,
    cut_polygon,
    dissimilarities,
    gaussian_window,
    paste,
    perceptual_distance,
)
from detectors.backbones import build_backbone
from detectors.batches import make_batch
from detectors.fit import Budget, Settings, fit, freeze_all_but
from detectors.natural import NaturalImages
from detectors.phases import Batch
from detectors.run import read_run
from export.onnx import export_run, parity_images, torch_maps

RNG = np.random.default_rng(0)


def images(*shape):
    return RNG.random(shape).astype(np.float32)


def equation_8(sigma):
    g = np.array([np.exp(-(n - 5) ** 2 / (2 * sigma**2)) for n in range(11)])
    return g / g.sum()


def equations_2_to_5(x, y, sigma):
    """Luminance, contrast and structure of two images [H, W], summed over each window's part inside the image.

    FLOOR is our addition: the variance of noise added to both images.
    """
    height, width = x.shape
    g = equation_8(sigma)
    c1, c2 = 0.01**2, 0.03**2
    c3 = c2 / 2
    luminance, contrast, structure = np.empty((3, height, width))
    for i in range(height):
        for j in range(width):
            rows, columns = range(max(0, i - 5), min(height, i + 6)), range(max(0, j - 5), min(width, j + 6))
            w = np.array([[g[r - i + 5] * g[k - j + 5] for k in columns] for r in rows])
            w /= w.sum()
            a, b = (image[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].astype(float) for image in (x, y))
            mu_x, mu_y = (w * a).sum(), (w * b).sum()
            sigma_x = np.sqrt((w * (a - mu_x) ** 2).sum() + FLOOR)
            sigma_y = np.sqrt((w * (b - mu_y) ** 2).sum() + FLOOR)
            sigma_xy = (w * (a - mu_x) * (b - mu_y)).sum() + FLOOR
            luminance[i, j] = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
            contrast[i, j] = (2 * sigma_x * sigma_y + c2) / (sigma_x**2 + sigma_y**2 + c2)
            structure[i, j] = (sigma_xy + c3) / (sigma_x * sigma_y + c3)
    return luminance, contrast, structure


@pytest.mark.parametrize("sigma", [0.5, 1.5, 2.5])
def test_the_window_is_equation_8_around_its_middle(sigma):
    np.testing.assert_allclose(gaussian_window(sigma), equation_8(sigma), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 2.5])
def test_luminance_contrast_and_structure_are_equations_2_to_5(sigma):
    x, y = images(2, 3, 14, 12), images(2, 3, 14, 12)
    y[0] = 0.8 * x[0] + 0.1  # alike in structure
    y[1, 0] = 1 - x[1, 0]  # the opposite
    got = dissimilarities(torch.from_numpy(x), torch.from_numpy(y), gaussian_window(sigma))
    for n in range(2):
        for channel in range(3):
            for part, expected in zip(got, equations_2_to_5(x[n, channel], y[n, channel], sigma), strict=True):
                np.testing.assert_allclose(1 - part[n, channel], expected, atol=2e-4)
    assert got[2][0].max() < 0.1 and got[2][1, 0].min() > 1.5


def test_an_image_is_wholly_similar_to_itself_and_flat_ones_have_a_gradient():
    x = torch.from_numpy(images(1, 3, 16, 16))
    for part in dissimilarities(x, x, gaussian_window(1.5)):
        torch.testing.assert_close(part, torch.zeros_like(part), atol=1e-4, rtol=0)
    y = torch.full((1, 3, 16, 16), 0.4, requires_grad=True)
    sum(part.mean() for part in dissimilarities(torch.full_like(y, 0.6), y, gaussian_window(1.5))).backward()
    assert y.grad.isfinite().all() and y.grad.abs().sum() > 0


def test_where_an_image_is_flat_rounding_does_not_show():
    """A reconstruction with next to no texture beside an image with much: as on the bright ground around a part."""
    ramp = 0.9 + 1e-4 * images(1, 3, 32, 32)
    x, flat = torch.from_numpy(images(1, 3, 32, 32)), torch.from_numpy(ramp.astype(np.float32))
    window = gaussian_window(2.5)
    exact = dissimilarities(x.double(), flat.double(), window.double())
    for part, expected in zip(dissimilarities(x, flat, window), exact, strict=True):
        assert float((part - expected).abs().max()) < 2e-3


def dissimilarity(net, x, y):
    return net.dissimilarity(*(torch.from_numpy(image)[None, None] for image in (x, y)), gaussian_window(1.5))[0, 0]


def test_the_similarity_is_the_weighted_sum_of_equation_7_with_weights_that_sum_to_1():
    x, y = images(12, 12), images(12, 12)
    luminance, contrast, structure = equations_2_to_5(x, y, 1.5)
    got = dissimilarity(AwSsim(2, luminance=3, contrast=2, structure=1), x, y)
    np.testing.assert_allclose(1 - got, 3 / 6 * luminance + 2 / 6 * contrast + 1 / 6 * structure, atol=2e-4)


def test_without_aw_ssim_the_similarity_is_the_product_of_equation_6_under_a_fixed_window():
    x, y = images(12, 12), images(12, 12)
    luminance, contrast, structure = equations_2_to_5(x, y, 1.5)
    net = AwSsim(2, **AwSsim.ablations["SSIM instead of AW-SSIM"])
    np.testing.assert_allclose(1 - dissimilarity(net, x, y), luminance * contrast * structure, atol=2e-4)
    start_epochs(net, 40, 256)
    assert {stepped_sigma(net) for _ in range(4)} == {1.5}


def start_epochs(net, count, size):
    net.phases(size)[0].start(np.broadcast_to(np.uint8(0), (count, size, size, 3)))


def good_batch(count=4):
    image = torch.rand(count, 3, 32, 32)
    return Batch(image, image, torch.zeros(count, 1, 32, 32))


def stepped_sigma(net):
    """Sigma of a step, which is then done."""
    sigma = net.sigma()
    net.losses(good_batch(1))
    return sigma


def test_sigma_grows_by_k_a_step_as_equation_9_has_it_and_starts_again_with_each_epoch():
    net = AwSsim(2, sigma_first=0.5, sigma_last=2.5)
    start_epochs(net, 24, 256)
    steps = 24 / 8 * 256 / 128 * 256 / 128  # samples / batch size x H / P_H x W / P_W
    k = (2.5 - 0.5) / steps
    sigmas = [stepped_sigma(net) for _ in range(15)]
    assert sigmas == pytest.approx([0.5 + k * i for i in range(12)] + [0.5 + k * i for i in range(3)])


def test_sigma_goes_on_where_a_checkpoint_left_it():
    net, resumed = AwSsim(2), AwSsim(2)
    start_epochs(net, 24, 256)
    first = [stepped_sigma(net) for _ in range(4)]
    resumed.load_state_dict(net.state_dict())
    assert resumed.sigma() == net.sigma() > max(first)


def test_the_loss_is_1_minus_aw_ssim_under_the_steps_window():
    net, batch = AwSsim(2, sigma_first=0.5, sigma_last=2.5), good_batch()
    start_epochs(net, 24, 256)
    for sigma in (0.5, 0.5 + 2 / 12):
        expected = net.dissimilarity(batch.clean, net.reconstruct(batch.image), gaussian_window(sigma)).mean()
        torch.testing.assert_close(net.losses(batch)["similarity"], expected)


def test_the_perceptual_loss_is_the_mean_over_layers_of_distances_of_unit_features():
    first, second = ([images(2, 5, 4, 6) - 0.5, images(2, 7, 2, 3) - 0.5] for _ in range(2))
    layers = []
    for a, b in zip(first, second, strict=True):
        total = 0.0
        for n in range(2):
            for i in range(a.shape[2]):
                for j in range(a.shape[3]):
                    u, v = a[n, :, i, j], b[n, :, i, j]
                    total += ((u / np.linalg.norm(u) - v / np.linalg.norm(v)) ** 2).sum()
        layers.append(total / (2 * a.shape[2] * a.shape[3]))
    got = perceptual_distance([torch.from_numpy(a) for a in first], [torch.from_numpy(b) for b in second])
    assert got.item() == pytest.approx(np.mean(layers), rel=1e-5)


def test_stage_2_is_equation_10_against_the_image_without_defects():
    net, backbone = AwSsim(2, similarity_share=0.7).eval(), build_backbone("alexnet")
    net.use_backbone(backbone)
    clean, image = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 64, 64)
    y, sigma = net.reconstruct(image), net.sigma()
    terms = net.phases(64)[1].losses(Batch(clean, image, torch.ones(3, 1, 64, 64)))
    torch.testing.assert_close(terms["similarity"], 0.7 * net.dissimilarity(clean, y, gaussian_window(sigma)).mean())
    torch.testing.assert_close(terms["perceptual"], 0.3 * perceptual_distance(backbone(clean), backbone(y)))


def test_the_backbone_is_no_part_of_the_network():
    net = AwSsim(2)
    before = set(net.state_dict())
    net.use_backbone(build_backbone("alexnet"))
    assert set(net.state_dict()) == before and not any("alexnet" in type(m).__name__.lower() for m in net.modules())


def test_exactly_two_encoder_stages_reach_the_decoder_past_the_bottleneck():
    net = AwSsim(2).eval()
    image = torch.rand(1, 3, 64, 64)
    skipped = []
    for number in range(4):
        # nothing comes the long way
        bottleneck = net.bottleneck.register_forward_hook(lambda _m, _i, output: torch.zeros_like(output))
        reached, passed = [], net.encoder[number].register_forward_hook(lambda _m, _i, output: output + 1)
        later = [stage.register_forward_hook(lambda _m, _i, output: torch.zeros_like(output))
                 for stage in net.encoder[number + 1:]]
        for shifted in (True, False):
            if not shifted:
                passed.remove()
            reached.append(net.reconstruct(image))
        skipped.append(not torch.equal(*reached))
        for hook in (bottleneck, *later):
            hook.remove()
    assert skipped == [False, True, True, False]


def test_the_encoder_halves_four_times_to_eight_widths_each_stage_with_batch_norm_and_activation():
    net = AwSsim(AwSsim.presets["paper"].arguments["width"])
    x, shapes = torch.zeros(2, 3, 64, 64), []
    for stage in net.encoder:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
        assert [type(layer) for layer in stage.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert shapes == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
    for stage, sides in zip(net.decoder, (8, 16, 32), strict=True):
        layers = [layer for layer in stage.modules() if not list(layer.children())]
        assert [type(layer) for layer in layers[-3:]] == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU]
        first = next(layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)))
        assert stage(torch.zeros(1, first.in_channels, sides // 2, sides // 2)).shape[-1] == sides
    assert not any(layer.kernel_size == (1, 1)
                   for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)))
    y = net.reconstruct(torch.rand(1, 3, 96, 64))
    assert y.shape == (1, 3, 96, 64) and y.min() >= 0 and y.max() <= 1


def test_stage_1_sees_good_patches_of_128_px_alone_and_stage_2_both_kinds():
    net, natural = AwSsim(2), NaturalImages()
    pixels = (images(2, 256, 256, 3) * 255).astype(np.uint8)
    good, repair = (make_batch(net, phase, pixels, natural, (1, 0, 0)) for phase in net.phases(256))
    assert good.image.shape == repair.image.shape == (8, 3, 128, 128)
    assert torch.equal(good.image, good.clean) and not good.mask.any()
    defective = repair.mask.flatten(1).any(1)
    assert defective.any() and not defective.all()
    assert torch.equal(repair.image[~defective], repair.clean[~defective])
    assert all(not torch.equal(a, b) for a, b in zip(repair.image[defective], repair.clean[defective], strict=True))


def test_all_weights_learn_in_both_stages_in_bfloat16_too():
    net, backbone = AwSsim(2), build_backbone("alexnet")
    net.use_backbone(backbone)
    for phase in net.phases(64):
        freeze_all_but(net, phase.trained)
        with torch.autocast("cpu", torch.bfloat16):
            terms = phase.losses(good_batch())
        for name, term in terms.items():
            assert term.dtype == torch.float32
            for gradient in torch.autograd.grad(term, list(net.parameters()), retain_graph=True):
                assert gradient.isfinite().all() and gradient.abs().sum() > 0, name
    assert set(terms) == {"similarity", "perceptual"}
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_map_adds_the_residuals_each_as_a_multiple_of_what_good_surface_shows():
    net, image = AwSsim(2).eval(), torch.rand(2, 3, 64, 48)
    net.typical.copy_(torch.tensor([0.2, 0.1, 0.4, 0.05]))
    y = net.reconstruct(image)
    luminance, contrast, structure = (part.mean(1, keepdim=True)
                                      for part in dissimilarities(image, y, gaussian_window(net.sigma_map)))
    difference = (image - y).abs().mean(1, keepdim=True)
    torch.testing.assert_close(net(image), (luminance / 0.2 + contrast / 0.1 + structure / 0.4 + difference / 0.05) / 4)
    plain = AwSsim(2, **AwSsim.ablations["pixel difference instead of feature difference"]).eval()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(plain(image), difference)
    product = AwSsim(2, **AwSsim.ablations["SSIM instead of AW-SSIM"]).eval()
    product.load_state_dict(net.state_dict() | {"typical": torch.tensor([0.2, 0.05])})
    ssim = product.dissimilarity(image, y, gaussian_window(net.sigma_map)).mean(1, keepdim=True)
    torch.testing.assert_close(product(image), (ssim / 0.2 + difference / 0.05) / 2)


def test_a_finished_network_has_measured_good_images_and_its_map_of_them_is_1_on_average():
    net = AwSsim(2).eval()
    pixels = (images(10, 64, 64, 3) * 255).astype(np.uint8)
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        net.finish(pixels)
        residuals = net.residuals(image, net.reconstruct(image))
        torch.testing.assert_close(net.typical, residuals.mean((0, 2, 3)), rtol=1e-3, atol=0)
        typical = net.typical_map.typical
        assert typical.std() > 0.01
        # TypicalMap adds a tenth, so that no place divides by 0
        assert net(image).mean().item() == pytest.approx(1 / 1.1, rel=0.05)


class Red(NaturalImages):
    """Photographs of nothing but red."""

    def crop(self, rng, height, width, channels):
        return np.broadcast_to(np.float32([1, 0, 0]), (height, width, channels))


def test_a_polygon_of_3_to_7_vertices_is_cut_with_a_soft_edge_and_fills_the_size_asked_for():
    source, soft = np.ascontiguousarray(Red().crop(None, 96, 96, 3)), 0
    for seed in range(40):
        part, opacity = cut_polygon(source, np.random.default_rng(seed), 30, 50)
        assert part.shape == (30, 50, 3) and opacity.shape == (30, 50, 1) and part.dtype == opacity.dtype == np.float32
        np.testing.assert_allclose(part, source[:30, :50], atol=1e-6)
        assert opacity.min() == 0 and 0 < opacity.mean() < 0.9
        inside = opacity[..., 0] > 0.02
        assert inside.any(1).sum() >= 28 and inside.any(0).sum() >= 48
        soft += bool(np.any((opacity > 0.05) & (opacity < 0.95)))
    assert soft > 30


def test_a_part_is_pasted_by_its_opacity_as_equation_1_has_it():
    target, part, opacity = images(9, 11, 3), images(4, 5, 3), images(4, 5, 1)
    before, expected = target.copy(), target.copy()
    for i in range(4):
        for j in range(5):
            for channel in range(3):
                m = opacity[i, j, 0]
                expected[2 + i, 3 + j, channel] = m * part[i, j, channel] + (1 - m) * before[2 + i, 3 + j, channel]
    np.testing.assert_allclose(paste(target, part, opacity, 2, 3), expected, rtol=1e-5)
    assert np.array_equal(target, before)


def test_artificial_defects_leave_the_good_surface_and_come_in_many_sizes():
    rng, natural, net = np.random.default_rng(3), NaturalImages(), AwSsim(2)
    image = np.clip(0.5 + 0.1 * smooth_noise(rng, 96, 128, 2), 0, 1)[..., None].repeat(3, axis=2)
    shares, changes = [], []
    for _ in range(150):
        before = image.copy()
        defective, mask = net.make_defects(image, rng, natural)
        assert np.array_equal(image, before)
        assert defective.dtype == mask.dtype == np.float32 and defective.shape == image.shape
        assert mask.shape == (96, 128, 1)
        assert set(np.unique(mask)) == {0, 1} and defective.min() >= 0 and defective.max() <= 1
        assert np.abs(defective - image)[mask[..., 0] == 0].max() <= 4 * 0.05
        shares.append(mask.mean())
        changes.append(np.abs(defective - image)[mask[..., 0] > 0].mean())
    assert min(shares) < 0.01 and 0.15 < max(shares) < 0.7
    assert np.mean(np.array(changes) > 0.02) > 0.8


def test_natural_images_and_the_surface_itself_are_both_pasted_at_many_opacities():
    rng, net = np.random.default_rng(1), AwSsim(2)
    image = np.full((64, 64, 3), 0.5, np.float32)
    peaks, greys = [], 0
    for _ in range(80):
        defective, mask = net.make_defects(image, rng, Red())
        red = defective[..., 0] - defective[..., 1]  # 0 on grey, the opacity on red
        if red.max() > 0.05:
            peaks.append(red.max())
        greys += bool(np.any((np.abs(defective - image).max(2) > 0.05) & (np.abs(red) < 0.01) & (mask[..., 0] > 0)))
    assert len(peaks) > 30 and greys > 10
    assert min(peaks) < 0.4 and max(peaks) > 0.9


@pytest.mark.parametrize("ablation", AwSsim.ablations)
def test_every_ablation_changes_what_it_says(ablation):
    net, whole = AwSsim(2, **{"even_light": True, **AwSsim.ablations[ablation]}), AwSsim(2, even_light=True)
    net.use_backbone(build_backbone("alexnet"))
    phases = net.phases(64)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert len(phases) == (1 if ablation == "without the second phase" else 2)
    assert all(phase.defective == 0 for phase in phases[:1])
    if len(phases) == 2:
        terms = {"similarity"} if ablation == "without LPIPS" else {"similarity", "perceptual"}
        assert set(phases[1].losses(good_batch())) == terms
    assert (net.sigma() == 1.5) == (ablation == "SSIM instead of AW-SSIM")
    whole.typical_map.typical.fill_(0.5)
    state = {name: value for name, value in whole.state_dict().items() if name in net.state_dict()}
    net.load_state_dict(state | {"typical": torch.ones_like(net.typical)})
    whole.typical.fill_(1)
    image = torch.rand(2, 3, 64, 64)
    same = torch.equal(net.eval()(image), whole.eval()(image))
    assert same == (ablation in ("without LPIPS", "without the second phase"))


@pytest.mark.parametrize("ablation", [None, *AwSsim.ablations])
def test_a_fit_becomes_a_graph_that_runs_alike_in_torch_openvino_and_onnx_runtime(ablation, cloth, tmp_path):
    arguments = AwSsim.ablations[ablation] if ablation else {}
    record = fit(Settings("aw-ssim", size=64, width=4, arguments=arguments), cloth, tmp_path / "run", Budget(steps=4))
    assert record.steps == 4
    record, net = read_run(tmp_path / "run")
    frames = parity_images(record, net)[:3]
    expected = torch_maps(net, frames)
    assert expected.min() >= 0 and np.isfinite(expected).all() and np.ptp(expected) > 0
    if ablation not in (None, "SSIM instead of AW-SSIM", "pixel difference instead of feature difference"):
        return  # the graph is the whole method's, or has less than that
    _, difference = export_run(tmp_path / "run", tmp_path / "bundle")
    assert difference < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model" / "fp32.onnx",
                                           providers=["CPUExecutionProvider"])
    for batch in (frames, frames[:1]):
        (got,) = session.run(None, {session.get_inputs()[0].name: batch})
        assert np.abs(got - expected[:len(batch)]).max() < 1e-3 * np.ptp(expected)

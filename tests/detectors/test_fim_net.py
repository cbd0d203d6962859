"""FIM-Net against plain NumPy versions of the paper's equations and against its Table I."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from detectors.artificial_defects import smooth_noise
from detectors.fim_net import (
    RECEPTIVE_FIELDS,
    FeatureFusion,
    FimNet,
    MemoryAugmentedModule,
    cut,
    feature_difference,
    pasted_defects,
    sparsity_loss,
    stitch,
)
from detectors.fit import Budget, Settings, fit, freeze_all_but
from detectors.natural import NaturalImages
from detectors.phases import Batch
from detectors.run import read_run
from export.onnx import export_run, parity_images, torch_maps

RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def equations_2_to_4(z, memory, epsilon):
    codes, weights = [], []
    n = len(memory)
    for zk in z:
        w = softmax(np.array([zk @ m / np.linalg.norm(zk) / np.linalg.norm(m) for m in memory]))
        w = np.array([max(wi - 1 / n, 0) * wi / (abs(wi - 1 / n) + epsilon) for wi in w])
        w = w / np.abs(w).sum()
        weights.append(w)
        codes.append(sum(wi * m for wi, m in zip(w, memory, strict=True)))
    return np.stack(codes), np.stack(weights)


def test_the_memory_is_equations_2_to_4():
    module = MemoryAugmentedModule(7, 12, 1e-5).double()
    z = numbers(5, 12).astype(float)
    codes, weights = equations_2_to_4(z, module.items.detach().numpy(), 1e-5)
    got_codes, got_weights = module(torch.from_numpy(z))
    np.testing.assert_allclose(got_weights.detach(), weights, rtol=1e-9)
    np.testing.assert_allclose(got_codes.detach(), codes, rtol=1e-9)
    assert (weights == 0).any() and (weights > 0).any()


def test_the_sparsity_loss_is_equation_5_as_a_mean_and_finite_for_weights_of_zero():
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1]], requires_grad=True)
    loss = sparsity_loss(weights)
    first, second = -2 * 0.5 * np.log(0.5), -(0.2 * np.log(0.2) + 0.7 * np.log(0.7) + 0.1 * np.log(0.1))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    loss.backward()
    assert weights.grad.isfinite().all()


def test_the_fusion_is_equations_6_to_10():
    module = FeatureFusion(6).eval()
    z, memory_code = numbers(4, 6), numbers(4, 6)
    (w_f, b_f), (w_i, b_i), (w_c, b_c) = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in (module.forget, module.input, module.texture)
    )
    expected = []
    for zk, mk in zip(z, memory_code, strict=True):
        both = np.concatenate([zk, mk])
        kept = softmax(w_f @ both + b_f) * zk
        expected.append(kept + softmax(w_i @ both + b_i) * np.tanh(w_c @ both + b_c))
    got = module(torch.from_numpy(z), torch.from_numpy(memory_code))
    np.testing.assert_allclose(got.detach(), np.stack(expected), rtol=1e-5, atol=1e-7)


def receptive_fields(convolutions):
    field, jump, fields = 1, 1, []
    for conv in convolutions:
        field += (conv.kernel_size[0] - 1) * jump
        jump *= conv.stride[0]
        fields.append(field)
    return tuple(fields)


def test_the_receptive_fields_of_equation_16_follow_from_table_1():
    convolutions = [layer for layer in FimNet(2).encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert receptive_fields(convolutions[:3]) == RECEPTIVE_FIELDS


def test_the_map_is_equations_15_and_16():
    first = [numbers(2, 3, 8, 12), numbers(2, 3, 8, 12), numbers(2, 5, 4, 6)]
    second = [numbers(*x.shape) for x in first]
    expected = np.zeros((2, 16, 24))
    for weight, a, b in zip((4 / 26, 8 / 26, 14 / 26), first, second, strict=True):
        difference = ((a - b) ** 2).mean(axis=1)
        scale = 16 // a.shape[2]
        for y in range(16):
            for x in range(24):
                v, u = (max((c + 0.5) / scale - 0.5, 0) for c in (y, x))
                y0, x0 = int(v), int(u)
                y1, x1 = min(y0 + 1, a.shape[2] - 1), min(x0 + 1, a.shape[3] - 1)
                top = difference[:, y0, x0] * (1 - u + x0) + difference[:, y0, x1] * (u - x0)
                bottom = difference[:, y1, x0] * (1 - u + x0) + difference[:, y1, x1] * (u - x0)
                expected[:, y, x] += weight * (top * (1 - v + y0) + bottom * (v - y0))
    got = feature_difference([torch.from_numpy(a - b) for a, b in zip(first, second, strict=True)], 16, 24)
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-4)


def test_the_features_are_the_encoders_first_three_layers_on_the_whole_image():
    net = FimNet(2).eval()
    x, y = torch.rand(1, 3, 128, 64) * 2 - 1, torch.rand(1, 3, 128, 64)
    scales = net.features(x)
    assert [tuple(s.shape) for s in scales] == [(1, 2, 64, 32), (1, 2, 64, 32), (1, 4, 32, 16)]
    moved = x.clone()
    # the second patch: features beyond the seam of the patches see it, further ones do not
    moved[:, :, 64:] = y[:, :, 64:]
    changed = [(a - b).abs().amax(dim=(1, 3))[0] > 0 for a, b in zip(scales, net.features(moved), strict=True)]
    assert [int(rows.int().argmax()) for rows in changed] == [31, 30, 14]


def test_patches_are_cut_row_by_row_and_stitched_back():
    image = torch.from_numpy(numbers(2, 3, 128, 192))
    patches = cut(image)
    assert patches.shape == (12, 3, 64, 64)
    index = 0
    for n in range(2):
        for y in range(0, 128, 64):
            for x in range(0, 192, 64):
                assert torch.equal(patches[index], image[n, :, y:y + 64, x:x + 64])
                index += 1
    assert torch.equal(stitch(patches, 128, 192), image)


def test_a_patch_is_reconstructed_from_itself_alone_with_values_from_minus_1_to_1():
    net = FimNet(2).eval()
    image = torch.rand(1, 3, 128, 128) * 2 - 1
    other = image.clone()
    other[:, :, :64, 64:] = torch.rand(1, 3, 64, 64)
    before, after = net.reconstruct(image), net.reconstruct(other)
    assert before.abs().max() <= 1
    same = (before == after).all(dim=1)[0]
    assert same[64:].all() and same[:64, :64].all() and not same[:64, 64:].all()


def test_the_map_compares_an_image_of_minus_1_to_1_with_its_reconstruction():
    net = FimNet(2, whiten=False).eval()
    image = torch.rand(2, 3, 64, 128)
    x = image * 2 - 1
    y = net.reconstruct(x)
    differences = [a - b for a, b in zip(net.features(x), net.features(y), strict=True)]
    torch.testing.assert_close(net(image), feature_difference(differences, 64, 128))
    assert net(image).shape == (2, 1, 64, 128)
    pixels = FimNet(2, feature_map=False).eval()
    pixels.load_state_dict(net.state_dict())
    torch.testing.assert_close(pixels(image), ((x - y) ** 2).mean(1, keepdim=True))


TABLE_1 = {  # operation, kernel, stride, padding, channels, batch norm, activation
    "encoder": [
        (nn.Conv2d, 4, 2, 1, 3, 32, False, None), (nn.Conv2d, 3, 1, 1, 32, 32, True, nn.LeakyReLU),
        (nn.Conv2d, 4, 2, 1, 32, 64, True, nn.LeakyReLU), (nn.Conv2d, 4, 2, 1, 64, 128, True, nn.LeakyReLU),
        (nn.Conv2d, 4, 2, 1, 128, 256, True, nn.LeakyReLU), (nn.Conv2d, 4, 1, 0, 256, 512, False, None),
    ],
    "decoder": [
        (nn.ConvTranspose2d, 4, 1, 0, 512, 256, False, None), (nn.ConvTranspose2d, 4, 2, 1, 256, 128, True, nn.ReLU),
        (nn.ConvTranspose2d, 4, 2, 1, 128, 64, True, nn.ReLU), (nn.ConvTranspose2d, 4, 2, 1, 64, 32, True, nn.ReLU),
        (nn.ConvTranspose2d, 3, 1, 1, 32, 32, True, nn.ReLU), (nn.ConvTranspose2d, 4, 2, 1, 32, 3, False, nn.Tanh),
    ],
}


@pytest.mark.parametrize("part", TABLE_1)
def test_the_layers_are_those_of_table_1(part):
    net = FimNet(FimNet.presets["paper"].arguments["width"])
    rows = []
    for layer in getattr(net, part).modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            assert not isinstance(layer.padding, str)
            (kernel, k), (stride, s), (padding, p) = layer.kernel_size, layer.stride, layer.padding
            assert (kernel, stride, padding) == (k, s, p)
            rows.append([type(layer), kernel, stride, padding, layer.in_channels, layer.out_channels, False, None])
        elif isinstance(layer, nn.BatchNorm2d):
            assert rows[-1][6:] == [False, None] and layer.num_features == rows[-1][5]
            rows[-1][6] = True
        elif not isinstance(layer, nn.Sequential):
            assert rows[-1][7] is None and getattr(layer, "negative_slope", 0.2) == 0.2
            rows[-1][7] = type(layer)
    assert [tuple(row) for row in rows] == TABLE_1[part]
    for layer in (net.fusion.forget, net.fusion.input, net.fusion.texture):
        assert (layer.in_features, layer.out_features) == (1024, 512)


def test_the_setup_is_the_papers():
    net = FimNet(32)
    assert net.memory.items.shape == (100, 512)
    assert (net.reconstruction_weight, net.sparsity_weight) == (50, 0.01)
    z = net.encoder(torch.zeros(2, 3, 64, 64))
    assert z.shape == (2, 512, 1, 1)
    assert net.decode(z.flatten(1)).shape == (2, 3, 64, 64)
    for phase in net.phases(FimNet.presets["paper"].size):
        assert phase.batch_size * (phase.views.crop // 64) ** 2 == 512
        assert phase.betas[0] == 0.5


def good_batch(count=4):
    image = torch.rand(count, 3, 64, 64)
    return Batch(image, image, torch.zeros(count, 1, 64, 64))


def test_the_first_phase_sees_good_patches_and_teaches_all_and_the_second_repairs_with_a_frozen_memory():
    net = FimNet(2)
    first, second = net.phases(128)
    assert first.share + second.share == pytest.approx(1)
    assert first.defective == 0 and second.defective > 0.5
    for phase, frozen in ((first, set()), (second, {"memory.items"})):
        freeze_all_but(net, phase.trained)
        assert {name for name, parameter in net.named_parameters() if not parameter.requires_grad} == frozen
        sum(phase.losses(good_batch()).values()).backward()
        idle = {name for name,
                parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()}
        assert idle == frozen, phase.name
        net.zero_grad()


def test_the_reconstruction_is_compared_with_the_image_without_defects():
    net = FimNet(2).eval()
    clean, image = torch.rand(2, 3, 64, 128), torch.rand(2, 3, 64, 128)
    terms = net.losses(Batch(clean, image, torch.ones(2, 1, 64, 128)))
    expected = 50 * ((2 * clean - 1) - net.reconstruct(2 * image - 1)).abs().mean()
    torch.testing.assert_close(terms["reconstruction"], expected)
    _, weights = net.repair(net.encoder(cut(2 * image - 1)).flatten(1))
    torch.testing.assert_close(terms["sparsity"], 0.01 * sparsity_loss(weights))


def test_every_loss_term_reaches_the_weights_it_is_about_in_bfloat16_too():
    net = FimNet(2)
    with torch.autocast("cpu", torch.bfloat16):
        terms = net.losses(good_batch())
    assert all(term.dtype == torch.float32 for term in terms.values())
    for name, parameters in {
        "reconstruction": (net.encoder[0].weight, net.memory.items, net.fusion.forget.weight, net.fusion.input.weight,
                           net.fusion.texture.weight, net.decoder[0].weight, net.decoder[5].weight),
        "sparsity": (net.encoder[0].weight, net.memory.items),
    }.items():
        for gradient in torch.autograd.grad(terms[name], parameters, retain_graph=True):
            assert gradient.isfinite().all() and gradient.abs().sum() > 0, name


def test_the_repaired_code_does_not_drown_in_the_epsilon_of_the_decoders_batch_norm():
    torch.manual_seed(0)
    net = FimNet()
    code, _ = net.repair(net.encoder(torch.rand(16, 3, 64, 64) * 2 - 1).flatten(1))
    signal = net.decoder[1][0](net.decoder[0](code[:, :, None, None])).var(dim=(0, 2, 3))
    assert signal.min() > 30 * net.decoder[1][1].eps


def test_artificial_defects_follow_equation_1():
    rng, natural = np.random.default_rng(3), NaturalImages()
    image = np.clip(0.5 + 0.1 * smooth_noise(rng, 96, 128, 2), 0, 1)[..., None].repeat(3, axis=2)
    shares, changes = [], []
    for _ in range(100):
        before = image.copy()
        defective, mask = pasted_defects(image, rng, natural)
        assert np.array_equal(image, before)
        assert defective.dtype == mask.dtype == np.float32 and defective.shape == image.shape
        assert mask.shape == (96, 128, 1)
        assert set(np.unique(mask)) == {0, 1} and defective.min() >= 0 and defective.max() <= 1
        assert np.array_equal(defective[mask[..., 0] == 0], image[mask[..., 0] == 0])
        shares.append(mask.mean())
        changes.append(np.abs(defective - image)[mask[..., 0] > 0].mean())
    assert min(shares) < 0.02 and 0.2 < max(shares) <= 0.5
    assert np.mean(np.array(changes) > 0.03) > 0.9


class Red(NaturalImages):
    """Photographs of nothing but red."""

    def crop(self, rng, height, width, channels):
        return np.broadcast_to(np.float32([1, 0, 0]), (height, width, channels))


def test_a_natural_and_a_blurred_paste_are_both_made():
    rng = np.random.default_rng(1)
    image = rng.random((64, 64, 3), dtype=np.float32)
    contrasts = []
    for _ in range(100):
        defective, mask = pasted_defects(image, rng, Red())
        red = (defective == np.float32([1, 0, 0])).all(axis=2)
        blurred = (mask[..., 0] > 0) & ~red
        if red.sum() > 20 and blurred.sum() > 200:
            contrasts.append(defective[blurred].std() / image.std())
    assert len(contrasts) >= 8 and np.mean(contrasts) < 0.6


@pytest.mark.parametrize("ablation", FimNet.ablations)
def test_every_ablation_learns_what_it_has_and_makes_a_map(ablation):
    net = FimNet(2, **FimNet.ablations[ablation])
    phases = net.phases(128)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert len(phases) == (1 if ablation == "without the second phase" else 2)
    assert (net.memory is None) == (ablation == "without the memory")
    assert (net.fusion is None) == (ablation in ("without the memory", "without FIFFM"))
    for phase in phases:
        freeze_all_but(net, phase.trained)
        terms = phase.losses(good_batch())
        assert set(terms) == ({"reconstruction"} if net.memory is None else {"reconstruction", "sparsity"})
        sum(terms.values()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.requires_grad)
    result = net.eval()(torch.rand(2, 3, 64, 64))
    assert result.shape == (2, 1, 64, 64) and result.isfinite().all()


def test_without_fifm_the_memory_code_and_without_the_memory_the_code_goes_to_the_decoder():
    z = torch.from_numpy(numbers(3, 32))
    plain = FimNet(2, memory=False, fusion=False)
    assert plain.repair(z) == (z, None)
    memory = FimNet(2, fusion=False)
    assert memory.memory is not None
    torch.testing.assert_close(memory.repair(z)[0], memory.memory(z)[0])


@pytest.mark.parametrize("ablation", [None, "without the memory"])
def test_a_fit_becomes_a_graph_that_runs_alike_in_torch_openvino_and_onnx_runtime(ablation, cloth, tmp_path):
    arguments = FimNet.ablations[ablation] if ablation else {}
    record = fit(Settings("fim-net", size=128, width=2, arguments=arguments), cloth, tmp_path / "run", Budget(steps=4))
    assert record.steps == 4
    _, difference = export_run(tmp_path / "run", tmp_path / "bundle")
    assert difference < 1e-3
    record, net = read_run(tmp_path / "run")
    images = parity_images(record, net)[:3]
    expected = torch_maps(net, images)
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model" / "fp32.onnx",
                                           providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images})
    assert np.abs(got - expected).max() < 1e-3 * np.ptp(expected)

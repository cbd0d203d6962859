"""NDP-Net: normal reference attention and defective feature perception.

W. Luo, H. Yao, W. Yu, IEEE Trans. Instrum. Meas. 72, 2023. Equation and table numbers are the paper's. Every loss is a
mean over batch and positions, so that its weight means the same at every image size.

The paper leaves open, and we chose: two 3x3 convolutions per stage; N(.) of eq 2 as minimum-maximum per image; the
reference (the good image most similar to all others); the sub-networks of MSDSM. The paper fits whole images at a
constant rate of 1e-4. For minutes on a CPU we use views of half the image's side and a rate that rises to 1e-3.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.artificial_defects import Image, blended_defects
from detectors.backbones import Backbone
from detectors.detector import Preset
from detectors.enlarge import enlarged
from detectors.images import as_input, miniatures, most_typical
from detectors.light import EvenLightDetector
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase, Views
from detectors.residuals import TypicalMap, cell_maps

REPAIRED = (3, 4, 5)  # stages with an RBAM: l1 = 3 to l2 = 5
SEGMENTED = (1, 2, 3)  # stages with a sub-network of MSDSM
STAGE_WEIGHTS = (0.2, 0.2, 0.6)  # lambda 1 to 3 of eq 11
PATCHES = (2, 4)  # K


def stage(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )


def repair(features: Tensor, reference: Tensor, patch: int) -> Tensor:
    """RBFRM, eqs 3-5: replace each K x K patch of ``[N, C, h, w]`` by a likeness-weighted mixture of the reference's.

    reference: ``[1, C, H, W]``. Its patches become the weights of convolutions: the features keep their layout, and
    INT8 covers convolutions.
    """
    channels = features.shape[1]
    b = F.pixel_unshuffle(reference, patch).flatten(2)[0].T.reshape(-1, channels, patch, patch)  # b_j: [M, C, K, K]
    unit = b / b.square().sum((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    squares = F.avg_pool2d(features.square(), patch).sum(1, keepdim=True)
    length = (squares * patch**2).sqrt().clamp_min(1e-6)  # [N, 1, h / K, w / K]
    # Eq 3, and the numerator of eq 4: [N, M, h / K, w / K].
    likeness = torch.exp(F.conv2d(features, unit, stride=patch) / length)
    total = F.interpolate(likeness.sum(1, keepdim=True), scale_factor=float(patch))
    return F.conv_transpose2d(likeness, b, stride=patch) / total  # eq 5


class ReferenceAttention(nn.Module):
    """RBAM: RBFRM at two patch sizes, and FFM (eqs 6-8), which selects among the results and the original features."""

    def __init__(self, channels: int, compressed: int) -> None:
        super().__init__()
        self.compress = nn.Conv2d(channels, compressed, 5, 1, 2)
        self.attend = nn.Conv2d(compressed, 3 * channels, 5, 1, 2)  # the three 5x5 convolutions side by side

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """Features ``[N, C, h, w]``, the reference's ``[1, C, H, W]`` -> repaired features float32 ``[N, C, h, w]``."""
        with torch.autocast(features.device.type, enabled=False):
            candidates = [features.float(), *(repair(features.float(), reference, patch) for patch in PATCHES)]
        maps = self.attend(self.compress(sum(candidates)))  # eq 6
        return fuse(candidates, list(maps.float().chunk(3, 1)))


def fuse(candidates: list[Tensor], maps: list[Tensor]) -> Tensor:
    """Eqs 7 and 8: three candidates and their attention maps, all ``[N, C, h, w]`` -> the weighted sum, same shape."""
    # A softmax, without concatenating the maps.
    largest = torch.maximum(torch.maximum(maps[0], maps[1]), maps[2]).detach()
    weights = [torch.exp(part - largest) for part in maps]
    mixed = weights[0] * candidates[0] + weights[1] * candidates[1] + weights[2] * candidates[2]
    return mixed / (weights[0] + weights[1] + weights[2])


def defect_perception_loss(clean: list[Tensor], defective: list[Tensor], mask: Tensor) -> Tensor:
    """Eq 2, L_def_per: at each stage, the normalised feature difference of a good and a defective image shall equal the
    mask.

    Features ``[N, C_l, h_l, w_l]``, mask ``[N, 1, H, W]``. Views without a defect do not count.
    """
    shown = (mask.amax((1, 2, 3)) > 0).float()
    total = torch.zeros(())
    for a, b in zip(clean, defective, strict=True):
        difference = (a.float() - b.float()).square().mean(1, keepdim=True)
        low, high = difference.amin((1, 2, 3), keepdim=True), difference.amax((1, 2, 3), keepdim=True)
        normalised = (difference - low) / (high - low + 1e-8)
        error = (normalised - resized(mask, normalised)).square().mean((1, 2, 3))
        total = total + (error * shown).sum() / shown.sum().clamp_min(1)
    return total / len(clean)


def resized(mask: Tensor, like: Tensor) -> Tensor:
    """I_m^l: a mask ``[N, 1, H, W]`` at the size of a stage; each position holds its share of defective pixels."""
    return F.interpolate(mask, size=like.shape[-2:], mode="area")


def focal_loss(probability: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Lin et al. 2017, without class weights, for targets of 0..1: a mean over all positions."""
    p = probability.float().clamp(1e-6, 1 - 1e-6)
    missed = (target - p).abs() ** gamma
    return -(missed * (target * p.log() + (1 - target) * (1 - p).log())).mean()


def segmentation_module(channels: int) -> nn.Sequential:
    """DSM: the features of one stage of input and reconstruction, ``[N, 2C, h, w]`` -> logits ``[N, 1, h, w]``."""
    return nn.Sequential(stage(2 * channels, channels), nn.Conv2d(channels, 1, 1))


class NdpNet(EvenLightDetector):
    """Image float32 ``[N, 3, H, W]`` in 0..1, H = W = size -> anomaly map float32 ``[N, 1, H, W]``, 0 or more."""

    channels = 3
    stride = 64  # four halvings, then patches of 4
    backbone = "vgg16"
    post_filter = ("mean:5", "median:5", "threshold")
    published: ClassVar = {
        "carpet": (0.9541, 0.9762, 0.9320), "grid": (0.9937, 0.9850, 0.9572), "leather": (1.0, 0.9943, 0.9879),
        "tile": (0.9944, 0.9952, 0.9739), "wood": (0.9982, 0.9764, 0.9355),
    }
    presets: ClassVar = {
        "paper": Preset(256, {"width": 64, "typical": False, "even_light": False}),
        "edge": Preset(256, {"width": 16}),
    }
    ablations: ClassVar = {
        "without RBAM": {"reference_attention": False},
        "without the defect perception loss": {"perception_weight": 0.0},
        "pixel difference instead of feature difference": {"segmentation": False},
        "without the typical map": {"typical": False},
        "in the light as it came": {"even_light": False},
    }

    def __init__(
        self, width: int = 16, size: int = 256, reconstruction_weight: float = 100.0, perceptual_weight: float = 1.0,
        perception_weight: float = 1.0, repair_weight: float = 1.0, segmentation_weight: float = 1.0,
        first_share: float = 0.35, learning_rate: float = 1e-3, reference_attention: bool = True,
        segmentation: bool = True, typical: bool = True,
        even_light: bool | None = None,
    ) -> None:
        """The weights are those of eqs 14 and 17; first_share: phase 1's share of a fit.

        reference_attention: with RBAM; segmentation: with MSDSM, otherwise the map is the squared difference of pixels;
        typical: divide the map by the typical one (`detectors.residuals`); even_light: see `detectors.light`; None:
        decided from the good images.
        """
        super().__init__(even_light)
        self.reconstruction_weight, self.perceptual_weight = reconstruction_weight, perceptual_weight
        self.perception_weight, self.repair_weight = perception_weight, repair_weight
        self.segmentation_weight, self.first_share, self.learning_rate = segmentation_weight, first_share, learning_rate
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        pairs = zip([3, *widths[:-1]], widths, strict=True)
        self.encoder = nn.ModuleList(stage(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairs))
        attention = (ReferenceAttention(widths[i - 1], width) for i in REPAIRED)
        self.attention = nn.ModuleList(attention) if reference_attention else None
        skipped = [widths[4], widths[3] + widths[3], widths[2] + widths[2], widths[1], widths[0]]
        outputs = [widths[3], widths[2], widths[1], widths[0], width]
        self.decoder = nn.ModuleList(stage(a, b) for a, b in zip(skipped, outputs, strict=True))
        self.to_image = nn.Conv2d(width, 3, 3, 1, 1)
        self.segment = nn.ModuleList(segmentation_module(widths[i - 1]) for i in SEGMENTED) if segmentation else None
        self.typical = TypicalMap() if typical else None
        self.register_buffer("reference", torch.zeros(1, 3, size, size))
        for i in REPAIRED:
            side = size >> (i - 1)
            self.register_buffer(f"reference_features_{i}", torch.zeros(1, widths[i - 1], side, side))
        # In a tuple, so that it is no submodule: neither saved nor exported.
        self._perceptual: tuple[Backbone, ...] = ()

    def use_backbone(self, backbone: Backbone) -> None:
        self._perceptual = (backbone,)

    # --- The graph ---

    def encode(self, image: Tensor) -> list[Tensor]:
        """The features of stages 1 to 5, at strides 1 to 16."""
        features, x = [], image - 0.5
        for layer in self.encoder:
            x = layer(x)
            features.append(x)
        return features

    def repaired(self, features: list[Tensor]) -> list[Tensor]:
        """F_out of stages 3 to 5."""
        deep = [features[i - 1] for i in REPAIRED]
        if self.attention is None:
            return deep
        references: list[Any] = [getattr(self, f"reference_features_{i}") for i in REPAIRED]
        return [attend(x, reference) for attend, x, reference in zip(self.attention, deep, references, strict=True)]

    def decode(self, third: Tensor, fourth: Tensor, fifth: Tensor) -> Tensor:
        """The reconstruction ``[N, 3, H, W]`` from the features of stages 3 to 5."""
        x = self.decoder[0](fifth)
        x = self.decoder[1](torch.cat([F.interpolate(x, scale_factor=2.0), fourth], 1))
        x = self.decoder[2](torch.cat([F.interpolate(x, scale_factor=2.0), third], 1))
        x = self.decoder[3](F.interpolate(x, scale_factor=2.0))
        x = self.decoder[4](F.interpolate(x, scale_factor=2.0))
        return torch.sigmoid(self.to_image(x).float())

    def maps(self, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
        """MSDSM: AM 1 to 3 ``[N, 1, h_l, w_l]`` from the features of the image and of its reconstruction."""
        assert self.segment is not None
        pairs = [torch.cat([first[i - 1].float(), second[i - 1].float()], 1) for i in SEGMENTED]
        return [torch.sigmoid(layer(pair).float()) for layer, pair in zip(self.segment, pairs, strict=True)]

    def anomaly_map(self, image: Tensor) -> Tensor:
        result = self.difference(image)
        return result if self.typical is None else self.typical(result)

    def difference(self, image: Tensor) -> Tensor:
        """AM_final, eq 11, in 0..1; or, without MSDSM, the squared difference of image and reconstruction."""
        features = self.encode(image)
        reconstruction = self.decode(*self.repaired(features))
        if self.segment is None:
            return (image - reconstruction).square().mean(1, keepdim=True)
        total = torch.zeros(())
        for weight, part in zip(STAGE_WEIGHTS, self.maps(features, self.encode(reconstruction)), strict=True):
            total = total + weight * enlarged(part, *image.shape[-2:])
        return total

    def finish(self, pixels: NDArray[np.uint8]) -> None:
        """Measure the typical map."""
        if self.typical is not None:
            self.typical.set(cell_maps(self.difference, pixels))

    # --- The recipe ---

    def phases(self, size: int) -> list[Phase]:
        views, share = Views(max(self.stride, size // 2 // self.stride * self.stride)), self.first_share
        second = [name for name in ("attention", "decoder", "to_image", "segment") if getattr(self, name) is not None]
        return [
            Phase("perceive", share, self.first_losses, views, 8, self.learning_rate,
                  ("encoder", "decoder", "to_image"), defective=1.0, weight_decay=1e-5),
            Phase("repair", 1 - share, self.second_losses, views, 8, self.learning_rate, tuple(second),
                  weight_decay=1e-5, start=self.set_reference),
        ]

    def set_reference(self, pixels: NDArray[np.uint8]) -> None:
        """Keep the good image among ``[N, H, W, C]`` that is most similar to all others, and its features."""
        index = most_typical(miniatures(pixels))
        with torch.no_grad():
            self.get_buffer("reference").copy_(as_input(pixels[index:index + 1]))
            features = self.encode(self.get_buffer("reference"))
            for i in REPAIRED:
                self.get_buffer(f"reference_features_{i}").copy_(features[i - 1])

    def perceptual_loss(self, image: Tensor, target: Tensor) -> Tensor:
        """L_per, eqs 13 and 16: L1 between features of an ImageNet network, a mean over its layers."""
        with torch.no_grad():
            wanted = self._perceptual[0](target)
        pairs = zip(self._perceptual[0](image), wanted, strict=True)
        return torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs]).mean()

    def first_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of eq 14 (eqs 12, 13, 2); the decoder sees only features of good images."""
        both = self.encode(torch.cat([batch.clean, batch.image]))
        clean, defective = [x.chunk(2)[0] for x in both], [x.chunk(2)[1] for x in both]
        reconstruction = self.decode(*clean[2:])
        terms = {
            "reconstruction": self.reconstruction_weight * (batch.clean - reconstruction).square().mean(),
            "perceptual": self.perceptual_weight * self.perceptual_loss(reconstruction, batch.clean),
        }
        if self.perception_weight:
            terms["defect perception"] = self.perception_weight * defect_perception_loss(clean, defective, batch.mask)
        return terms

    def second_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of eq 17 (eqs 15, 16, 9, 10)."""
        with torch.no_grad():
            both = self.encode(torch.cat([batch.clean, batch.image]))
        clean, features = [x.chunk(2)[0] for x in both], [x.chunk(2)[1] for x in both]
        repaired = self.repaired(features)
        reconstruction = self.decode(*repaired)
        terms = {
            "reconstruction": self.reconstruction_weight * (batch.clean - reconstruction).square().mean(),
            "perceptual": self.perceptual_weight * self.perceptual_loss(reconstruction, batch.clean),
        }
        if self.attention is not None:
            wanted = [clean[i - 1] for i in REPAIRED]
            terms["feature repair"] = self.repair_weight * feature_repair_loss(repaired, wanted)
        if self.segment is not None:
            parts = self.maps(features, self.encode(reconstruction))
            losses = torch.stack([focal_loss(part, resized(batch.mask, part)) for part in parts])
            terms["segmentation"] = self.segmentation_weight * losses.mean()  # eq 10
        return terms

    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        """Eq 1 at random opacity, as in DRAEM, with natural images or the changed surface itself."""
        return blended_defects(image, rng, natural, natural_share=0.5)


def feature_repair_loss(repaired: list[Tensor], clean: list[Tensor]) -> Tensor:
    """Eq 9: repaired features ``[N, C_l, h_l, w_l]`` against those of the good image.

    The factor is 1 / (l2 - l1) as printed, so 1/2 for three stages.
    """
    terms = [(a.float() - b.float()).square().mean() for a, b in zip(repaired, clean, strict=True)]
    return torch.stack(terms).sum() / (len(terms) - 1)

"""Local one-class classification with image matching: each position of an aligned part has a feature centre of its own.

C. Lv, Z. Zhang, F. Shen, F. Zhang, CVPR Workshops 2023. Equation numbers are the paper's. ALM is the anomaly
localisation module. IMM is the image matching module, which aligns shifted and turned parts with a template. Every loss
is a mean over batch and positions.

The paper leaves open, and we chose: the layers of N_P, N_R and N_M; the template (the image most similar to all others,
not a random one); the reduction behind F_C (the leading directions of the uncentred features, so that a mean still has
a direction for the cosine); and whether parts need matching, which is decided from the good images unless it is given.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.artificial_defects import Image, blended_defects
from detectors.backbones import PACKAGED, Backbone, build_backbone
from detectors.detector import Detector, Preset
from detectors.enlarge import enlarged
from detectors.image_matching import ImageMatching, inverse, match, parts_come_moved, warp
from detectors.images import as_input, miniatures, most_typical
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase, Views
from detectors.residuals import TypicalMap, cell_maps, in_batches, whitening_matrix

NOISE_WEIGHT = 0.3


def half_cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """0.5 dist(a, b), eq 4: maps ``[N, D, h, w]`` and ``[1, D, h, w]`` -> ``[N, 1, h, w]`` in 0..1.

    As the squared difference of unit vectors: one minus a cosine of nearly one keeps few digits.
    """
    difference = F.normalize(a.float(), dim=1, eps=1e-6) - F.normalize(b.float(), dim=1, eps=1e-6)
    return 0.25 * difference.square().sum(1, keepdim=True)


def localisation_loss(distance: Tensor, mask: Tensor, margin: float) -> dict[str, Tensor]:
    """The two parts of eq 5: distances ``[N, 1, h, w]`` fall at good positions, and rise to the margin at mask 1."""
    return {"good": ((1 - mask) * distance).mean(), "defective": (mask * (margin - distance).clamp_min(0)).mean()}


class LocalOcc(Detector):
    """Image float32 ``[N, 3, H, W]`` in 0..1, H = W = size -> anomaly map float32 ``[N, 1, H, W]``, 0 or more."""

    mean: Tensor
    whitening: Tensor
    local_mean: Tensor
    local_whitening: Tensor
    image_whitening: Tensor
    centres: Tensor
    template: Tensor
    template_features: Tensor
    channels = 3
    stride = 32
    backbone = "resnet18"
    post_filter = ("mean:9", "threshold")
    published: ClassVar = {
        "carpet": (0.991,), "grid": (0.991,), "leather": (0.995,), "tile": (0.974,), "wood": (0.970,),
        "bottle": (0.985,), "cable": (0.978,), "capsule": (0.985,), "hazelnut": (0.984,), "metal_nut": (0.976,),
        "pill": (0.971,), "screw": (0.965,), "toothbrush": (0.988,), "transistor": (0.975,), "zipper": (0.992,),
    }
    presets: ClassVar = {
        "paper": Preset(256, {"width": 256, "noise": 0.0, "whiten": False, "untaught": False, "typical": False,
                              "passes": 1}),
        "edge": Preset(256, {"width": 128}),
    }
    ablations: ClassVar = {
        "without IMM": {"align": False}, "one pass of IMM": {"passes": 1},
        "without artificial defects": {"defects": False}, "one centre for all positions": {"local": False},
        "without feature noise": {"noise": 0.0}, "without whitening": {"whiten": False},
        "without the untaught distance": {"untaught": False}, "without the typical map": {"typical": False},
    }

    def __init__(self, width: int = 128, size: int = 256, backbone: str = PACKAGED, align: bool | None = None,
                 defects: bool = True, local: bool = True, margin: float = 0.1, target: int = 64, cell: int = 8,
                 noise: float = 0.5, whiten: bool = True, untaught: bool = True, typical: bool = True,
                 passes: int = 2) -> None:
        """width: channels of N_M; target: channels of F_C; cell: px of the image per position of F_M; margin: delta.

        align: with IMM; None: see `settle`. defects: learn from artificial defects (eq 5), otherwise eq 3. local: a
        centre for each position, otherwise one for all. noise: the deviation of noise added to features, which stands
        for defects that no image shows (0: the paper's eq 5). whiten: N_M sees F_mixed whitened by good images,
        relative to its mean, its mean at each position and the image's own mean; otherwise only relative to its mean,
        divided by each channel's deviation. untaught: combine H_Map with the distance of F_mixed from its mean at each
        position (see `evidence`). typical: divide the map by the typical one (`detectors.residuals`). passes: number of
        passes of IMM, each on the result of the one before (the paper: 1).
        """
        super().__init__()
        self.size, self.cell, self.margin, self.noise, self.whiten = size, cell, margin, noise, whiten
        self.passes = passes
        self.align, self.defects, self.local, self.untaught = bool(align), defects, local, untaught
        self.typical = TypicalMap() if typical else None
        self.features: Backbone = build_backbone(backbone)
        self.taps = [i for i, stride in enumerate(self.features.strides) if stride in (4, 8, 16)]
        mixed = sum(self.features.channels[i] for i in self.taps)
        cells = size // cell
        self.mapping = nn.Sequential(  # N_M
            nn.Conv2d(3 * mixed if whiten else mixed, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, target, 1),
        )
        self.matching = ImageMatching() if self.align else None
        self.register_buffer("mean", torch.zeros(1, mixed, 1, 1))
        self.register_buffer("whitening", torch.eye(mixed)[:, :, None, None])
        self.register_buffer("local_mean", torch.zeros(1, mixed, cells, cells))
        self.register_buffer("local_whitening", torch.eye(mixed)[:, :, None, None])
        self.register_buffer("image_whitening", torch.eye(mixed)[:, :, None, None])
        self.register_buffer("centres", torch.ones(1, target, cells, cells))
        if self.align:
            self.register_buffer("template", torch.zeros(1, 3, size, size))
            self.register_buffer("template_features", torch.zeros(1, 64, size // 32, size // 32))

    @classmethod
    def settle(cls, arguments: dict[str, Any], pixels: NDArray[np.uint8], backbone: Backbone | None) -> None:
        """Note which backbone is used, and decide whether parts arrive shifted or turned and so need matching."""
        if backbone is not None:
            arguments["backbone"] = backbone.name
        if arguments["align"] is None:
            arguments["align"] = parts_come_moved(pixels)

    def use_backbone(self, backbone: Backbone) -> None:
        self.features = backbone

    def phases(self, size: int) -> list[Phase]:
        shift, turn = (0.05, 7.0) if self.align else (0.0, 0.0)  # beyond the motion of the fitted parts
        localise = Phase(
            "localise", 0.7 if self.align else 1.0, self.localisation_losses,
            Views(size, not self.align, 0.5, shift, turn), batch_size=8, learning_rate=1e-3,
            trained=("mapping",), defective=0.7 if self.defects else 0.0, start=self.set_centres,
        )
        if not self.align:
            return [localise]
        match = Phase("match", 0.3, self.matching_losses, Views(size, False, 0.3, shift, turn), batch_size=16,
                      learning_rate=5e-4, trained=("matching",), defective=0.0, start=self.choose_template)
        return [match, localise]

    # --- IMM ---

    def choose_template(self, pixels: NDArray[np.uint8]) -> None:
        """I_T: the good image that is most similar to all others."""
        index = most_typical(miniatures(pixels))
        self.template.copy_(as_input(pixels[index:index + 1]))

    def matching_losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_reg, eqs 1 and 2, also on blurred images, whose gradient reaches farther."""
        assert self.matching is not None
        half, terms = F.avg_pool2d(batch.image, 2), {}
        found = match(self.matching, batch.image, self.matching.n_p(self.template - 0.5), self.passes)
        for number, there in enumerate(found, 1):
            aligned = warp(half, there, "border")
            for factor in (1, 4, 16):
                error = F.avg_pool2d(aligned, factor) - F.avg_pool2d(self.template, 2 * factor)
                terms[f"pass {number} at 1/{2 * factor}"] = error.square().mean()
        return terms

    def aligned(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """I_M: images aligned with the template, and the sampling matrices ``[N, 2, 3]`` that align them."""
        assert self.matching is not None
        there = match(self.matching, image, self.template_features, self.passes)[-1]
        return warp(image, there, "border"), there

    # --- ALM ---

    def mixed_features(self, image: Tensor) -> Tensor:
        """F_mixed, float32 ``[N, D, size / cell, size / cell]``: features of strides 4, 8, 16, resized, joined."""
        side = self.size // self.cell
        features = self.features(image)
        resized = []
        for i in self.taps:
            feature = features[i].float()
            ratio = self.cell // self.features.strides[i]
            if ratio > 1:
                feature = F.avg_pool2d(feature, ratio)
            elif feature.shape[-1] != side:
                feature = enlarged(feature, side, side)
            resized.append(feature)
        return torch.cat(resized, 1)

    def set_centres(self, pixels: NDArray[np.uint8]) -> None:
        """F_C, the mean over good images of the reduced F_mixed at each position; and the whitening of F_mixed."""
        with torch.no_grad():
            if self.matching is not None:
                self.template_features.copy_(self.matching.n_p(self.template - 0.5))
            total = torch.zeros(self.mean.shape[1], *self.centres.shape[2:], dtype=torch.float64)
            moment, within = (torch.zeros(len(total), len(total), dtype=torch.float64) for _ in range(2))
            count = 0
            for image in in_batches(pixels):
                features = self.mixed_features(self.aligned(image)[0] if self.align else image).double()
                flat = features.permute(1, 0, 2, 3).flatten(1)
                total += features.sum(0)
                moment += flat @ flat.T
                around_own = (features - features.mean((2, 3), keepdim=True)).permute(1, 0, 2, 3).flatten(1)
                within += around_own @ around_own.T
                count += len(features)
            mean_map = total / count
            positions = self.centres.shape[-1] ** 2
            mean = mean_map.mean((1, 2))
            moment /= count * positions
            self.image_whitening.copy_(whitening_matrix(within / (count * positions))[:, :, None, None])
            covariance = moment - mean[:, None] * mean
            self.mean.copy_(mean[None, :, None, None])
            spread = covariance if self.whiten else covariance.diagonal().diag()
            self.whitening.copy_(whitening_matrix(spread)[:, :, None, None])
            around = mean_map if self.local else self.mean[0].expand_as(mean_map).double()
            self.local_mean.copy_(around[None])
            local_covariance = moment - around.flatten(1) @ around.flatten(1).T / positions
            self.local_whitening.copy_(whitening_matrix(local_covariance)[:, :, None, None])
            scale = covariance.diagonal().clamp_min(1e-8).rsqrt()
            directions = torch.linalg.eigh(scale[:, None] * moment * scale)[1].flip(1)
            reduced = torch.einsum("dk,dhw->khw", directions[:, :self.centres.shape[1]] * scale[:, None], mean_map)
            if not self.local:
                reduced = reduced.mean((1, 2), keepdim=True).expand_as(reduced)
            self.centres.copy_(F.normalize(reduced, dim=0)[None])

    def normalised(self, image: Tensor) -> Tensor:
        """The input of N_M for an image ``[N, 3, H, W]``; see `whitened`."""
        with torch.no_grad():
            mixed = self.mixed_features(image)
            with torch.autocast(image.device.type, enabled=False):
                return self.whitened(mixed)

    def whitened(self, mixed: Tensor) -> Tensor:
        """F_mixed ``[N, D, h, w]`` normalised by good images, the input of N_M; with `whiten` it has 3 D channels."""
        standard = F.conv2d(mixed - self.mean, self.whitening)
        if not self.whiten:
            return standard
        own_mean = mixed.mean((2, 3), keepdim=True)
        return torch.cat([standard, self.local_deviation(mixed), F.conv2d(mixed - own_mean, self.image_whitening)], 1)

    def local_deviation(self, mixed: Tensor) -> Tensor:
        """F_mixed ``[N, D, h, w]`` minus its mean at each position, whitened by its deviations there."""
        return F.conv2d(mixed - self.local_mean, self.local_whitening)

    def first_layer(self, around: Tensor) -> Tensor:
        """N_M's first convolution after `whitened`, from F_mixed minus its mean at each position, ``[N, D, h, w]``.

        Both steps are linear, so they are one convolution. Its weights and its offset at each position are constants.
        """
        first: Any = self.mapping[0]
        offset = F.conv2d(self.whitened(self.local_mean), first.weight, first.bias)  # the result for around = 0
        channels = around.shape[1]
        matrices = (self.whitening, self.local_whitening, self.image_whitening)[:first.weight.shape[1] // channels]
        weights = [(first.weight[:, i * channels:(i + 1) * channels, 0, 0] @ matrix[:, :, 0, 0])[:, :, None, None]
                   for i, matrix in enumerate(matrices)]
        if not self.whiten:
            return F.conv2d(around, weights[0]) + offset
        own = F.conv2d(around.mean((2, 3), keepdim=True), weights[2])
        return F.conv2d(around, weights[0] + weights[1] + weights[2]) + (offset - own)

    def evidence(self, image: Tensor) -> Tensor:
        """The map of aligned images with one value per cell, ``[N, 1, h, w]``: H_Map, changed by `untaught`, `typical`.

        The untaught distance is the Mahalanobis distance between F_mixed and its mean at each position. N_M learns from
        artificial defects and may miss defects that look different; the features alone also deviate without a defect.
        The geometric mean is high only if both are.
        """
        around = self.mixed_features(image) - self.local_mean
        result = half_cosine_distance(self.mapping[1:](self.first_layer(around)), self.centres)
        if self.untaught:
            result = (result * F.conv2d(around, self.local_whitening).square().mean(1, keepdim=True) + 1e-8).sqrt()
        return result if self.typical is None else self.typical(result)

    def finish(self, pixels: NDArray[np.uint8]) -> None:
        """Measure the typical map of aligned images."""
        def evidence(image: Tensor) -> Tensor:
            return self.evidence(self.aligned(image)[0] if self.align else image)

        if self.typical is not None:
            self.typical.set(cell_maps(evidence, pixels))

    def localisation_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq 5 (eq 3 without defects). M_s is 1 where a defect covers at least a fifth of a cell.

        Features with added noise shall be distant too; this term is not in the paper. Artificial defects teach what
        defects look like, noise teaches where good features end.
        """
        image, mask = batch.image, batch.mask
        if self.matching is not None:
            with torch.no_grad():
                image, there = self.aligned(image)
                mask = warp(mask, there, "zeros")
        mixed = self.normalised(image)
        cells = (F.avg_pool2d(mask, self.cell) >= 0.2).float()
        if not self.noise:
            return localisation_loss(half_cosine_distance(self.mapping(mixed), self.centres), cells, self.margin)
        noisy = mixed + self.noise * torch.randn_like(mixed) * torch.exp(torch.randn(len(mixed), 1, 1, 1) * 0.5)
        distance = half_cosine_distance(self.mapping(torch.cat([mixed, noisy])), self.centres)
        undisturbed, disturbed = distance.chunk(2)
        noise = NOISE_WEIGHT * (self.margin - disturbed).clamp_min(0).mean()
        return {**localisation_loss(undisturbed, cells, self.margin), "noise": noise}

    def forward(self, image: Tensor) -> Tensor:
        if not self.align:
            return enlarged(self.evidence(image), self.size, self.size)
        aligned, there = self.aligned(image)
        result = enlarged(self.evidence(aligned), self.size, self.size)
        return warp(result * self.valid(there), inverse(there), "zeros")

    def valid(self, there: Tensor) -> Tensor:
        """1 where I_M shows the frame and not its replicated border, less a margin of a cell: ``[N, 1, H, W]``."""
        inset = self.size - 2 * self.cell
        ones = F.pad(torch.ones(1, 1, inset, inset), (self.cell,) * 4).expand(there.shape[0], -1, -1, -1)
        return (warp(ones, there, "zeros") > 0.5).float() * ones

    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        """DGM, Fig. 7: regions of the image darkened, lightened, or replaced by natural images."""
        return blended_defects(image, rng, natural, natural_share=0.3)

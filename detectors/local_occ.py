"""Local one-class classification with image matching: each position of an aligned part has a feature centre of its own.

C. Lv, Z. Zhang, F. Shen, F. Zhang, CVPR Workshops 2023. Equation numbers are the paper's. ALM is the anomaly localisation module, IMM the
image matching module, which moves parts that arrive shifted and turned onto a template. Every loss is a mean over batch and positions.

Open in the paper, and chosen here: the layers of N_P, N_R and N_M; the template (the image most like all others, not a random one); the
reduction behind F_C (the leading directions of the features, about zero, so that a mean keeps a direction for the cosine); whether
parts need matching at all, which is read off the good images unless it is given.
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
    """Eq 5 in its two parts: distances ``[N, 1, h, w]`` of good positions fall, those of defective ones (mask 1) rise to the margin."""
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
        "without IMM": {"align": False}, "one pass of IMM": {"passes": 1}, "without artificial defects": {"defects": False},
        "one centre for all positions": {"local": False}, "without feature noise": {"noise": 0.0}, "without whitening": {"whiten": False},
        "without the untaught distance": {"untaught": False}, "without the typical map": {"typical": False},
    }

    def __init__(self, width: int = 128, size: int = 256, backbone: str = PACKAGED, align: bool | None = None,
                 defects: bool = True, local: bool = True, margin: float = 0.1, target: int = 64, cell: int = 8,
                 noise: float = 0.5, whiten: bool = True, untaught: bool = True, typical: bool = True,
                 passes: int = 2) -> None:
        """width: channels of N_M; target: of F_C; cell: px of the image that one position of F_M stands for; margin: delta.

        align: with IMM; None: see `settle`. defects: learn from artificial ones (eq 5, else eq 3); local: a centre for each position, else
        one for all. noise: deviations by which features are disturbed, as defects that no image shows (0: the paper's eq 5); whiten: N_M
        sees F_mixed in units of its deviations over good images, about its mean, its mean at each position and the image's own mean (else
        about its mean alone, in units of each channel's deviation). untaught: the map is the geometric mean of H_Map and of the distance
        that F_mixed has from its mean at each position before N_M (see `evidence`); typical: the map is measured by that of good images
        at each place (`detectors.residuals`); passes: of IMM, each on what the one before it aligned (the paper: 1).
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
        shift, turn = (0.05, 7.0) if self.align else (0.0, 0.0)  # beyond how the fitted parts came
        localise = Phase(
            "localise", 0.7 if self.align else 1.0, self.localisation_losses,
            Views(size, not self.align, 0.5, shift, turn), batch_size=8, learning_rate=1e-3,
            trained=("mapping",), defective=0.7 if self.defects else 0.0, start=self.set_centres,
        )
        if not self.align:
            return [localise]
        match = Phase("match", 0.3, self.matching_losses, Views(size, False, 0.3, shift, turn), batch_size=16, learning_rate=5e-4,
                      trained=("matching",), defective=0.0, start=self.choose_template)
        return [match, localise]

    # --- IMM ---

    def choose_template(self, pixels: NDArray[np.uint8]) -> None:
        """I_T: the good image that is most like all others."""
        index = most_typical(miniatures(pixels))
        self.template.copy_(as_input(pixels[index:index + 1]))

    def matching_losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_reg, eqs 1 and 2, beside the same on blurred images, which shows the way from farther off."""
        assert self.matching is not None
        half, terms = F.avg_pool2d(batch.image, 2), {}
        for number, there in enumerate(match(self.matching, batch.image, self.matching.n_p(self.template - 0.5), self.passes), 1):
            aligned = warp(half, there, "border")
            for factor in (1, 4, 16):
                error = F.avg_pool2d(aligned, factor) - F.avg_pool2d(self.template, 2 * factor)
                terms[f"pass {number} at 1/{2 * factor}"] = error.square().mean()
        return terms

    def aligned(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """I_M of images, and the sampling matrices of the way there."""
        assert self.matching is not None
        there = match(self.matching, image, self.template_features, self.passes)[-1]
        return warp(image, there, "border"), there

    # --- ALM ---

    def mixed_features(self, image: Tensor) -> Tensor:
        """F_mixed ``[N, D, size / cell, size / cell]`` in float32: the features of strides 4, 8 and 16, resized and concatenated."""
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
        """F_C: the mean over all good images of F_mixed after reduction, one vector for each position; and the whitening of F_mixed."""
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
            self.whitening.copy_(whitening_matrix(covariance if self.whiten else covariance.diagonal().diag())[:, :, None, None])
            around = mean_map if self.local else self.mean[0].expand_as(mean_map).double()
            self.local_mean.copy_(around[None])
            self.local_whitening.copy_(whitening_matrix(moment - around.flatten(1) @ around.flatten(1).T / positions)[:, :, None, None])
            scale = covariance.diagonal().clamp_min(1e-8).rsqrt()
            directions = torch.linalg.eigh(scale[:, None] * moment * scale)[1].flip(1)
            reduced = torch.einsum("dk,dhw->khw", directions[:, :self.centres.shape[1]] * scale[:, None], mean_map)
            if not self.local:
                reduced = reduced.mean((1, 2), keepdim=True).expand_as(reduced)
            self.centres.copy_(F.normalize(reduced, dim=0)[None])

    def normalised(self, image: Tensor) -> Tensor:
        """What N_M sees: F_mixed about its mean, in units of its deviations over good images; with `whiten` about two more means."""
        with torch.no_grad():
            mixed = self.mixed_features(image)
            with torch.autocast(image.device.type, enabled=False):
                return self.whitened(mixed)

    def whitened(self, mixed: Tensor) -> Tensor:
        """What N_M sees of F_mixed ``[N, D, h, w]``."""
        standard = F.conv2d(mixed - self.mean, self.whitening)
        if not self.whiten:
            return standard
        own_mean = mixed.mean((2, 3), keepdim=True)
        return torch.cat([standard, self.local_deviation(mixed), F.conv2d(mixed - own_mean, self.image_whitening)], 1)

    def local_deviation(self, mixed: Tensor) -> Tensor:
        """F_mixed ``[N, D, h, w]`` about its mean at each position, in units of its deviations there."""
        return F.conv2d(mixed - self.local_mean, self.local_whitening)

    def first_layer(self, around: Tensor) -> Tensor:
        """N_M's first convolution on what it sees (`whitened`) of F_mixed about its mean at each position, ``[N, D, h, w]``.

        All of it is linear, and so one convolution: its weights, and what it adds at each position, are worked out from constants.
        """
        first: Any = self.mapping[0]
        offset = F.conv2d(self.whitened(self.local_mean), first.weight, first.bias)  # of around = 0
        channels = around.shape[1]
        matrices = (self.whitening, self.local_whitening, self.image_whitening)[:first.weight.shape[1] // channels]
        weights = [(first.weight[:, i * channels:(i + 1) * channels, 0, 0] @ matrix[:, :, 0, 0])[:, :, None, None]
                   for i, matrix in enumerate(matrices)]
        if not self.whiten:
            return F.conv2d(around, weights[0]) + offset
        own = F.conv2d(around.mean((2, 3), keepdim=True), weights[2])
        return F.conv2d(around, weights[0] + weights[1] + weights[2]) + (offset - own)

    def evidence(self, image: Tensor) -> Tensor:
        """The map at the cells' resolution, ``[N, 1, h, w]``, of aligned images: H_Map, with `untaught` and `typical` what they add.

        The untaught distance is that of Mahalanobis between F_mixed and its mean at each position. N_M is taught by artificial defects and
        may overlook those that look otherwise; a deviation of the features alone may mean nothing. The geometric mean asks for both.
        """
        around = self.mixed_features(image) - self.local_mean
        result = half_cosine_distance(self.mapping[1:](self.first_layer(around)), self.centres)
        if self.untaught:
            result = (result * F.conv2d(around, self.local_whitening).square().mean(1, keepdim=True) + 1e-8).sqrt()
        return result if self.typical is None else self.typical(result)

    def finish(self, pixels: NDArray[np.uint8]) -> None:
        """Measure the map on good images ``[N, H, W, C]``, as they lie on the template."""
        if self.typical is not None:
            self.typical.set(cell_maps(lambda image: self.evidence(self.aligned(image)[0] if self.align else image), pixels))

    def localisation_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq 5 (eq 3 where there are no defects); M_s is 1 where a defect covers a fifth of a cell.

        Disturbed features shall be distant too. That term is not the paper's: artificial defects teach what defects look like, noise
        where good features end.
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
        """Where I_M shows the frame and not its border drawn out, with half a cell of margin: ``[N, 1, size, size]``, 0 or 1."""
        inset = self.size - 2 * self.cell
        ones = F.pad(torch.ones(1, 1, inset, inset), (self.cell,) * 4).expand(there.shape[0], -1, -1, -1)
        return (warp(ones, there, "zeros") > 0.5).float() * ones

    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        """DGM, Fig. 7: regions of the image darkened, lightened, or replaced by natural images."""
        return blended_defects(image, rng, natural, natural_share=0.3)

"""SIDN: a semantic information decomposition network for texture defects.

H. Yang, J. Hu, Z. Yin, Z. Wang, IEEE Trans. Ind. Informat. 19(7), 2023, doi 10.1109/TII.2022.3217751.
Equation numbers are the paper's. Every loss is a mean over batch and positions, so that its weight means the
same at every image size.

The paper fits for hours on a GPU, with batches of 16 at 256 px and Adam at a constant 1e-4. For minutes on a CPU we use
batches of 8 at half the size and a rate that rises to 2e-3 and falls to almost 0. Views are mirrored and relit, and
some stay good (detectors/fit.py).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.artificial_defects import Image, gaussian_noise_defects
from detectors.detector import Preset
from detectors.light import EvenLightDetector
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase, Views
from detectors.residuals import TypicalMap, cell_maps


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (Fig. 2); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            # A 1x1 convolution of stride 2, written as "every second pixel" and stride 1. The backward pass of the
            # strided one writes out of bounds with channels_last on a CPU (torch 2.13) and can crash the process.
            every_second = nn.MaxPool2d(1, stride) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(every_second, nn.Conv2d(inputs, outputs, 1, bias=False),
                                          nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class GlobalSemanticRelation(nn.Module):
    """GSRM, eqs 21-24: each position attends to the K cluster centres instead of to all other positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, z: Tensor, centres: Tensor) -> Tensor:
        """z ``[N, D, h, w]``, centres ``[K, D]`` -> ``[N, D, h, w]``."""
        kernel = centres[:, :, None, None]
        attention = F.conv2d(self.key(z), kernel).softmax(dim=1)  # eq 23: M = softmax(K' C^T), [N, K, h, w]
        return self.value(z) + F.conv2d(attention, kernel.transpose(0, 1))  # eq 24: V + MC


def segmentation_module(channels: int, width: int) -> nn.Sequential:
    """SM (Fig. 3): four deconvolution blocks, each doubling the size, then a deconvolution to one logit."""
    layers: list[nn.Module] = []
    for outputs in (8 * width, 4 * width, 2 * width, width):
        layers += [nn.ConvTranspose2d(channels, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        channels = outputs
    layers.append(nn.ConvTranspose2d(channels, 1, 3, 1, 1))
    return nn.Sequential(*layers)


def soft_assignment(z: Tensor, centres: Tensor) -> Tensor:
    """Eqs 9-12 with alpha = 1: Student-t similarity of features ``[N, D]`` to centres ``[K, D]``, rows sum to 1."""
    squared = (z[:, None, :] - centres[None]).square().sum(-1)
    q = 1.0 / (1.0 + squared)
    return q / q.sum(1, keepdim=True)


def sharpened_target(q: Tensor) -> Tensor:
    """Eqs 15-16: the auxiliary distribution P of Q ``[N, K]``, a constant for the gradient."""
    p = q.detach().square() / q.detach().sum(0)
    return p / p.sum(1, keepdim=True)


def clustering_loss(z: Tensor, centres: Tensor) -> Tensor:
    """Eq 17 for one branch: KL(P || Q), a mean over positions. z ``[N, D]``."""
    q = soft_assignment(z, centres)
    p = sharpened_target(q)
    return (p * (p.clamp_min(1e-12).log() - q.clamp_min(1e-12).log())).sum(1).mean()


def centre_separation_loss(texture: Tensor, defect: Tensor) -> Tensor:
    """Eq 18: the mean cosine similarity of all pairs of texture and defect centres ``[K, D]``."""
    return (F.normalize(texture, dim=1) @ F.normalize(defect, dim=1).T).mean()


def segmentation_loss(texture_logits: Tensor, defect_logits: Tensor, mask: Tensor, background_weight: float) -> Tensor:
    """Eq 5: weighted cross-entropy of both segmentations; mask 1 = defect, background_weight = lambda1."""
    good = background_weight * (1 - mask)
    texture = good * F.logsigmoid(texture_logits) + mask * F.logsigmoid(-texture_logits)
    defect = good * F.logsigmoid(-defect_logits) + mask * F.logsigmoid(defect_logits)
    return -(texture + defect).mean()


class Sidn(EvenLightDetector):
    """Image float32 ``[N, 1, H, W]`` in 0..1 -> anomaly map float32 ``[N, 1, H, W]``, 0 or more.

    H and W are multiples of 16.
    """

    channels = 1
    stride = 16
    presets: ClassVar = {
        "paper": Preset(256, {"width": 16, "typical": False, "even_light": False}),
        "edge": Preset(256, {"width": 16}),
    }
    ablations: ClassVar = {
        "without clustering": {"clustering_weight": 0.0}, "without centre separation": {"centre_weight": 0.0},
        "without GSRM": {"global_relation": False}, "without the typical map": {"typical": False},
        "in the light as it came": {"even_light": False},
    }
    post_filter = ("median:5", "threshold", "open:5")
    published: ClassVar = {
        "carpet": (0.990,), "grid": (0.983,), "leather": (0.996,), "tile": (0.964,), "wood": (0.956,),
    }

    def __init__(
        self, width: int = 16, clusters: int = 12, background_weight: float = 0.1, separation_weight: float = 0.01,
        clustering_weight: float = 0.01, centre_weight: float = 0.01, fusion: float = 0.5,
        global_relation: bool = True, typical: bool = True, even_light: bool | None = None,
    ) -> None:
        """width = C, clusters = K, the weights = lambda1..lambda4, fusion = lambda_f (section III-F).

        global_relation: with GSRM; typical: divide the map by the typical one (`detectors.residuals`); even_light: see
        `detectors.light`; None: decided from the good images.
        """
        super().__init__(even_light)
        self.background_weight = background_weight
        self.separation_weight = separation_weight
        self.clustering_weight = clustering_weight
        self.centre_weight = centre_weight
        self.fusion = fusion
        self.global_relation = global_relation
        deep = 16 * width
        self.fem = nn.Sequential(  # eq 2: [2C, H/2, W/2]
            nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), ResidualBlock(width, width),
            ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 2 * width),
        )
        self.texture_fsem = self._branch(width)  # eq 6
        self.defect_fsem = self._branch(width)  # eq 7
        self.texture_centres = nn.Parameter(torch.rand(clusters, deep))
        self.defect_centres = nn.Parameter(torch.rand(clusters, deep))
        self.texture_gsrm = GlobalSemanticRelation(deep)
        self.defect_gsrm = GlobalSemanticRelation(deep)
        self.texture_sm = segmentation_module(deep, width)  # eq 3
        self.defect_sm = segmentation_module(deep, width)  # eq 4
        self.typical = TypicalMap() if typical else None

    @staticmethod
    def _branch(width: int) -> nn.Sequential:
        """FSEM: to [16C, H/16, W/16]. Its last ReLU keeps features non-negative; otherwise eq 8 has no lower bound."""
        return nn.Sequential(*(ResidualBlock(c * width, 2 * c * width, 2) for c in (2, 4, 8)))

    def decompose(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Eqs 2, 6, 7: texture and defect features, each ``[N, 16C, H/16, W/16]``."""
        z = self.fem(image - 0.5)
        return self.texture_fsem(z), self.defect_fsem(z)

    def segment(self, z_t: Tensor, z_d: Tensor) -> tuple[Tensor, Tensor]:
        """Eqs 21-24, 3, 4: the logits of the texture and the defect segmentation, each ``[N, 1, H, W]``."""
        if self.global_relation:
            z_t, z_d = self.texture_gsrm(z_t, self.texture_centres), self.defect_gsrm(z_d, self.defect_centres)
        return self.texture_sm(z_t), self.defect_sm(z_d)

    def anomaly_map(self, image: Tensor) -> Tensor:
        result = self.fused(image)
        return result if self.typical is None else self.typical(result)

    def fused(self, image: Tensor) -> Tensor:
        """Eq 26: both branches combined, in 0..1."""
        texture, defect = self.segment(*self.decompose(image))
        return (1 - self.fusion) * torch.sigmoid(-texture) + self.fusion * torch.sigmoid(defect)

    def finish(self, pixels: NDArray[np.uint8]) -> None:
        """Measure the typical map."""
        if self.typical is not None:
            self.typical.set(cell_maps(self.fused, pixels))

    def phases(self, size: int) -> list[Phase]:
        crop = max(64, size // 2 // self.stride * self.stride)
        return [Phase("fit", 1.0, self.losses, Views(crop), batch_size=8, learning_rate=2e-3)]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of eq 25 (eqs 5 and 19)."""
        mask = batch.mask
        z_t, z_d = self.decompose(batch.image)
        texture, defect = self.segment(z_t, z_d)
        flat_t = z_t.float().permute(0, 2, 3, 1).flatten(0, 2)
        flat_d = z_d.float().permute(0, 2, 3, 1).flatten(0, 2)
        clustering = clustering_loss(flat_t, self.texture_centres) + clustering_loss(flat_d, self.defect_centres)
        return {
            "segmentation": segmentation_loss(texture.float(), defect.float(), mask, self.background_weight),
            "separation": self.separation_weight * (flat_t * flat_d).sum(1).mean(),  # eq 8
            "clustering": self.clustering_weight * clustering,
            "centres": self.centre_weight * centre_separation_loss(self.texture_centres, self.defect_centres),
        }

    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        """DGM, eq 1: noise replaces the image inside a random mask."""
        return gaussian_noise_defects(image, rng)

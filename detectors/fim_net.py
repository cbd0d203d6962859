"""FIM-Net: forgetting-inputting-based feature fusion and multiple hierarchical feature difference.

W. Luo, T. Niu, H. Yao, L. Tang, W. Yu, B. Li, IEEE Sensors J. 23(13), 2023, doi 10.1109/JSEN.2023.3276762.
Equation and table numbers are the paper's. Every loss is a mean over batch and positions, so that its weight means the
same at every image size.

The paper fits on a GPU, with batches of 512 patches and Adam at a constant 2e-4. For minutes on a CPU, our views have
half the image's side: a batch has 512 patches at 512 px and 64 at 256 px. The rate rises and falls to almost 0
(detectors/fit.py), and views are mirrored and relit.
"""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.artificial_defects import Image, blended_defects
from detectors.detector import Preset
from detectors.enlarge import enlarged
from detectors.light import EvenLightDetector
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase, Views
from detectors.residuals import TypicalMap, Whitening, cell_maps, mean_outer_products

PATCH = 64  # px, side of the patches; each is reconstructed on its own
RECEPTIVE_FIELDS = (4, 8, 14)  # px, of the encoder's first three layers (Table I)


def cut(image: Tensor) -> Tensor:
    """Image ``[N, C, H, W]`` -> its patches, row by row: ``[N * H/64 * W/64, C, 64, 64]``."""
    _, channels, height, width = image.shape
    tiles = image.reshape(-1, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, PATCH, PATCH)


def stitch(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `cut`: patches ``[N * H/64 * W/64, C, 64, 64]`` -> image ``[N, C, H, W]``."""
    channels = patches.shape[1]
    tiles = patches.reshape(-1, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


class MemoryAugmentedModule(nn.Module):
    """MAM, eqs 2-4: a code is replaced by a sparse mixture of N learnt codes of good patches."""

    def __init__(self, items: int, units: int, epsilon: float) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.randn(items, units))
        self.epsilon = epsilon

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z ``[B, C]`` -> memory code ``[B, C]`` and attention weights ``[B, N]``, which sum to 1."""
        w = (F.normalize(z, dim=1) @ F.normalize(self.items, dim=1).T).softmax(dim=1)  # eq 2
        above = w - 1 / len(self.items)
        w = above.relu() * w / (above.abs() + self.epsilon)  # eq 3
        w = F.normalize(w, p=1.0, dim=1)
        return w @ self.items, w  # eq 4


class FeatureFusion(nn.Module):
    """FIFFM, eqs 6-10: a forget gate erases defects from a code, an input gate adds texture in their place."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.forget = nn.Linear(2 * units, units)
        self.input = nn.Linear(2 * units, units)
        self.texture = nn.Linear(2 * units, units)

    def forward(self, z: Tensor, memory_code: Tensor) -> Tensor:
        """Both ``[B, C]`` -> the repaired code ``[B, C]``."""
        both = torch.cat((z, memory_code), dim=1)
        kept = self.forget(both).softmax(dim=1) * z  # eqs 6, 7
        return kept + self.input(both).softmax(dim=1) * self.texture(both).tanh()  # eqs 8-10


def sparsity_loss(weights: Tensor) -> Tensor:
    """Eq 5: the entropy of attention weights ``[B, N]``, a mean over patches."""
    return -(weights * weights.clamp_min(1e-12).log()).sum(1).mean()


def feature_difference(differences: list[Tensor], height: int, width: int) -> Tensor:
    """MHFD, eqs 15-16: feature differences of two images at three scales, ``[N, C_l, H_l, W_l]`` -> ``[N, 1, H, W]``.

    Squared differences are averaged over channels, as the text above eq 15 says.
    """
    total = torch.zeros(())
    for field, difference in zip(RECEPTIVE_FIELDS, differences, strict=True):
        squared = difference.square().mean(1, keepdim=True)
        total = total + field / sum(RECEPTIVE_FIELDS) * enlarged(squared, height, width)
    return total


def encoder_layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """A convolution with batch norm and LeakyReLU (Table I)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False), nn.BatchNorm2d(outputs),
                         nn.LeakyReLU(0.2))


def decoder_layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """A transposed convolution with batch norm and ReLU (Table I)."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, kernel, stride, 1, bias=False), nn.BatchNorm2d(outputs),
                         nn.ReLU())


class FimNet(EvenLightDetector):
    """Image float32 ``[N, 3, H, W]`` in 0..1 -> anomaly map float32 ``[N, 1, H, W]``, 0 or more.

    H and W are multiples of 64.
    """

    channels = 3
    stride = PATCH
    presets: ClassVar = {
        "paper": Preset(512, {"width": 32, "whiten": False, "even_light": False}),
        "edge": Preset(256, {"width": 32}),
    }
    ablations: ClassVar = {
        "without the memory": {"memory": False, "fusion": False}, "without FIFFM": {"fusion": False},
        "without the second phase": {"second_phase": False},
        "pixel difference instead of feature difference": {"feature_map": False},
        "without whitening": {"whiten": False},
        "in the light as it came": {"even_light": False},
    }
    post_filter = ("mean:9", "threshold")
    published: ClassVar = {
        "carpet": (0.9125,), "grid": (0.9931,), "leather": (0.9913,), "tile": (0.9882,), "wood": (0.9696,),
    }

    def __init__(
        self, width: int = 32, items: int = 100, epsilon: float = 1e-5, reconstruction_weight: float = 50.0,
        sparsity_weight: float = 0.01, first_share: float = 0.3, learning_rate: float = 1e-3, memory: bool = True,
        fusion: bool = True, second_phase: bool = True, feature_map: bool = True, whiten: bool = True,
        even_light: bool | None = None,
    ) -> None:
        """items = N, epsilon of eq 3, the weights = w_1 and w_2 (section III-E), first_share: stage 1's share of a fit.

        memory: with MAM; fusion: with FIFFM; second_phase: with stage 2; feature_map: with MHFD, otherwise squared
        pixel differences; whiten: normalise differences and maps by those of good images (`detectors.residuals`);
        even_light: see `detectors.light`; None: decided from the good images.
        """
        super().__init__(even_light)
        self.reconstruction_weight = reconstruction_weight
        self.sparsity_weight = sparsity_weight
        self.first_share = first_share
        self.learning_rate = learning_rate
        self.second_phase = second_phase
        self.feature_map = feature_map
        self.units = 16 * width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), encoder_layer(width, width, 3, 1), encoder_layer(width, 2 * width, 4, 2),
            encoder_layer(2 * width, 4 * width, 4, 2), encoder_layer(4 * width, 8 * width, 4, 2),
            nn.Conv2d(8 * width, self.units, 4),
        )
        self.memory = MemoryAugmentedModule(items, self.units, epsilon) if memory else None
        self.fusion = FeatureFusion(self.units) if memory and fusion else None
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(self.units, 8 * width, 4), decoder_layer(8 * width, 4 * width, 4, 2),
            decoder_layer(4 * width, 2 * width, 4, 2), decoder_layer(2 * width, width, 4, 2),
            decoder_layer(width, width, 3, 1),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )
        whitenings = (Whitening(c) for c in (width, width, 2 * width))
        self.whitening = nn.ModuleList(whitenings) if whiten and feature_map else None
        self.typical = TypicalMap() if whiten and feature_map else None

    def repair(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """LFRM: codes ``[B, C]`` -> repaired codes ``[B, C]``, attention weights ``[B, N]`` (None without memory)."""
        if self.memory is None:
            return z, None
        memory_code, weights = self.memory(z)
        if self.fusion is None:
            return memory_code, weights
        # The gates' weights have a mean of 1 / C. Unscaled, the code would be lost in the epsilon of the decoder's
        # batch norm. The decoder's first layer is linear, so this factor only changes the scale of its initial weights.
        return self.units * self.fusion(z, memory_code), weights

    def decode(self, code: Tensor) -> Tensor:
        """Repaired codes ``[B, C]`` -> patches ``[B, 3, 64, 64]`` in -1..1."""
        patches: Tensor = self.decoder(code[:, :, None, None])
        return patches

    def features(self, image: Tensor) -> list[Tensor]:
        """Scales 1 to 3 of an image ``[N, 3, H, W]`` in -1..1: the encoder's first three layers on all of it."""
        scales = []
        for layer in list(self.encoder)[:3]:
            image = layer(image)
            scales.append(image)
        return scales

    def reconstruct(self, image: Tensor) -> Tensor:
        """Image ``[N, 3, H, W]`` in -1..1 -> its reconstruction, patch by patch."""
        code, _ = self.repair(self.encoder(cut(image)).flatten(1))
        return stitch(self.decode(code), image.shape[2], image.shape[3])

    def differences(self, image: Tensor) -> list[Tensor]:
        """Of the features of an image ``[N, 3, H, W]`` in -1..1 and of its reconstruction, at scales 1 to 3."""
        return [a - b for a, b in zip(self.features(image), self.features(self.reconstruct(image)), strict=True)]

    def anomaly_map(self, image: Tensor) -> Tensor:
        x = 2 * image - 1
        if not self.feature_map:
            return (x - self.reconstruct(x)).square().mean(1, keepdim=True)
        differences = self.differences(x)
        if self.whitening is None or self.typical is None:
            return feature_difference(differences, image.shape[2], image.shape[3])
        whitened = [whitening(d) for whitening, d in zip(self.whitening, differences, strict=True)]
        return self.typical(feature_difference(whitened, image.shape[2], image.shape[3]))

    def finish(self, pixels: NDArray[np.uint8]) -> None:
        """Measure the differences of good images ``[N, H, W, C]``."""
        if self.whitening is None or self.typical is None:
            return
        moments = mean_outer_products(lambda image: self.differences(2 * image - 1), pixels)
        for whitening, moment in zip(self.whitening, moments, strict=True):
            whitening.set(moment)  # type: ignore[operator]
        self.typical.set(cell_maps(self.anomaly_map, pixels))

    def phases(self, size: int) -> list[Phase]:
        views = Views(max(PATCH, size // 2 // PATCH * PATCH), grid=PATCH)
        batch, betas = max(4, size // 16), (0.5, 0.999)
        share = self.first_share if self.second_phase else 1.0
        stages = [Phase("good patches", share, self.losses, views, batch, self.learning_rate, defective=0.0,
                        betas=betas)]
        if self.second_phase:
            trained = ("encoder", "decoder") if self.fusion is None else ("encoder", "fusion", "decoder")
            stages.append(Phase("repair", 1 - share, self.losses, views, batch, self.learning_rate, trained,
                                betas=betas))
        return stages

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of eqs 12 and 14: eqs 11 and 13 (against the image without defects), and eq 5."""
        z = self.encoder(cut(2 * batch.image - 1)).flatten(1)
        with torch.autocast(z.device.type, enabled=False):
            code, weights = self.repair(z.float())
        target = cut(2 * batch.clean - 1)
        terms = {"reconstruction": self.reconstruction_weight * (self.decode(code).float() - target).abs().mean()}
        if weights is not None:
            terms["sparsity"] = self.sparsity_weight * sparsity_loss(weights)
        return terms

    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        """MDGA, eq 1; in half of the views blended regions of any shape: squares do not resemble stains and strokes."""
        if rng.random() < 0.5:
            return blended_defects(image, rng, natural, natural_share=0.3)
        return pasted_defects(image, rng, natural)


def pasted_defects(image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
    """MDGA, eq 1: paste a crop of a natural image and a resized, blurred crop of the good image at random positions.

    The paper pastes 256 px on 512 px. Here both sides are random, up to half the view's, so that the network also
    learns small and thin defects.
    """
    height, width, channels = image.shape
    defective, mask = image.copy(), np.zeros((height, width, 1), np.float32)
    for kind in ("natural", "blurred"):
        h, w = np.maximum(2, np.exp(rng.uniform(np.log(0.03), np.log(0.5), 2)) * (height, width)).astype(int)
        part = natural.crop(rng, h, w, channels) if kind == "natural" else _blurred_crop(image, rng, h, w)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        defective[y:y + h, x:x + w] = part
        mask[y:y + h, x:x + w] = 1
    return defective, mask


def _blurred_crop(image: Image, rng: np.random.Generator, height: int, width: int) -> Image:
    """A random crop of ``image`` ``[H, W, C]``, resized to ``[height, width, C]`` and blurred."""
    side = rng.uniform(0.1, 0.9, 2)
    h, w = np.maximum(2, side * image.shape[:2]).astype(int)
    y, x = rng.integers(0, image.shape[0] - h + 1), rng.integers(0, image.shape[1] - w + 1)
    part = cv2.resize(image[y:y + h, x:x + w], (int(width), int(height)), interpolation=cv2.INTER_LINEAR)
    part = cv2.GaussianBlur(part, (0, 0), float(rng.uniform(1, 4)))
    return np.asarray(part.reshape(height, width, image.shape[2]), dtype=np.float32)

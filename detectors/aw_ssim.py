"""AW-SSIM: an autoencoder trained with an adaptive weighted structural similarity and a perceptual loss.

T. G. Shiferaw, L. Yao, Autoencoder-based unsupervised surface defect detection using two-stage training, J. Imaging
10(5), 2024, doi 10.3390/jimaging10050111. Equation and section numbers are the paper's. Every loss is a mean over
batch, channels and positions, so that its weight means the same at every image size.

The paper leaves open, and we chose: the layers; the weights of eq 7; sigma and k of eq 9; the share of each stage; the
residual. Our addition: residuals are normalised by those of good images (`AwSsim.finish`). The paper fits at 512 px on
a GPU for 25 epochs. For minutes on a CPU we use batches of 8 patches, a rate that rises to 2e-3 and falls to almost 0,
mirrored and relit views (detectors/fit.py), and spend most of the time on the second stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.artificial_defects import Image, changed_appearance
from detectors.backbones import Backbone
from detectors.detector import Preset
from detectors.light import EvenLightDetector
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase, Views
from detectors.residuals import TypicalMap, cell_maps, in_batches

PATCH = 128  # px, P_H = P_W
BATCH = 8  # patches
WINDOW = 11  # px, xi: the side of the sliding window
C1, C2 = 0.01**2, 0.03**2  # eq 3 and below eq 4, for images in 0..1
C3 = C2 / 2
FLOOR = 1e-5  # variance added to every image: a deviation of 0.8 grey levels, as from camera noise and rounding
PLAIN_SIGMA = 1.5  # px, for plain SSIM in its ablation


def gaussian_window(sigma: float) -> Tensor:
    """Eq 8: float32 ``[11]`` that sums to 1. n counts from the middle, where the text has the peak."""
    n = torch.arange(WINDOW, dtype=torch.float32) - WINDOW // 2
    window = torch.exp(-n.square() / (2 * sigma**2))
    return window / window.sum()


def local_means(images: Sequence[Tensor], window: Tensor) -> list[Tensor]:
    """Weighted means of images ``[N, C, H, W]`` under the window around each position; same shapes.

    At a border, the window is its part inside the image. All images go through one pass, because runtimes convolve 16
    channels in the time of 3. They are joined and split as planes, which costs nothing; concatenating channels would
    take as long as the passes that it saves.
    """
    middle = len(window) // 2
    column, row = window[None, None, :, None], window[None, None, None, :]

    def sums(image: Tensor) -> Tensor:
        groups = image.shape[1]
        across = F.conv2d(image, column.expand(groups, -1, -1, -1), padding=(middle, 0), groups=groups)
        return F.conv2d(across, row.expand(groups, -1, -1, -1), padding=(0, middle), groups=groups)

    batch, channels, height, width = images[0].shape
    together = torch.stack(list(images), 1).reshape(batch, len(images) * channels, height, width)
    means = sums(together) * (1 / sums(torch.ones_like(together[:1, :1])))
    apart = means.reshape(batch, len(images), channels * height * width)
    return [apart[:, i].reshape(batch, channels, height, width) for i in range(len(images))]


def dissimilarities(x: Tensor, y: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 - l, 1 - c and 1 - s of eqs 2, 4 and 5 for images float32 ``[N, C, H, W]`` in 0..1; same shape, 0 where equal.

    Each is written as one fraction: 1 minus nearly 1 keeps too few digits for half precision. Noise of variance `FLOOR`
    is added to both images: smaller variances are rounding errors, which differ between runtimes.
    """
    u, v = x - 0.5, y - 0.5  # smaller numbers, also to keep digits
    mean_u, mean_v, square_u, square_v, product = local_means((u, v, u * u, v * v, u * v), window)
    sigma_x = ((square_u - mean_u.square()).clamp_min(0) + FLOOR).sqrt()
    sigma_y = ((square_v - mean_v.square()).clamp_min(0) + FLOOR).sqrt()
    luminance = (mean_u - mean_v).square() / ((mean_u + 0.5).square() + (mean_v + 0.5).square() + C1)
    contrast = (sigma_x - sigma_y).square() / (sigma_x.square() + sigma_y.square() + C2)
    structure = (sigma_x * sigma_y - (product - mean_u * mean_v + FLOOR)) / (sigma_x * sigma_y + C3)
    return luminance, contrast, structure


def perceptual_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """LPIPS without its learned linear layers: squared distances of unit feature vectors, averaged over positions, then
    over layers.

    first, second: the features of two images, ``[N, C_l, H_l, W_l]`` for each layer.
    """
    def unit(features: Tensor) -> Tensor:
        return F.normalize(features.float(), dim=1, eps=1e-6)

    distances = [(unit(a) - unit(b)).square().sum(1).mean() for a, b in zip(first, second, strict=True)]
    return torch.stack(distances).mean()


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def deconvolution(inputs: int, outputs: int) -> nn.Sequential:
    """Transposed convolution, batch norm, activation; twice the side."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class AwSsim(EvenLightDetector):
    """Image float32 ``[N, 3, H, W]`` in 0..1 -> anomaly map float32 ``[N, 1, H, W]``, 0 or more.

    H and W are multiples of 16.
    """

    window: Tensor
    step: Tensor
    steps_per_epoch: Tensor
    typical: Tensor
    channels = 3
    stride = 16
    backbone = "alexnet"
    presets: ClassVar = {
        "paper": Preset(512, {"width": 32, "typical": False, "even_light": False}),
        "edge": Preset(256, {"width": 32}),
    }
    ablations: ClassVar = {
        "SSIM instead of AW-SSIM": {"adaptive": False}, "without LPIPS": {"similarity_share": 1.0},
        "without the second phase": {"second_phase": False},
        "pixel difference instead of feature difference": {"similarity_map": False},
        "without the typical map": {"typical": False},
        "in the light as it came": {"even_light": False},
    }
    post_filter = ("mean:15", "threshold")
    published: ClassVar = {
        "tile": (0.9656,), "wood": (0.9710,), "leather": (0.9876,), "carpet": (0.9920,), "hazelnut": (0.9889,),
        "pill": (0.9564,),
    }

    def __init__(
        self, width: int = 32, luminance: float = 0.4, contrast: float = 0.1, structure: float = 0.5,
        similarity_share: float = 0.8, sigma_first: float = 1.0, sigma_last: float = 3.0, sigma_map: float = 2.5,
        first_share: float = 0.2, learning_rate: float = 2e-3, adaptive: bool = True, second_phase: bool = True,
        similarity_map: bool = True, typical: bool = True,
        even_light: bool | None = None,
    ) -> None:
        """The weights, sigmas and shares, and which parts the method has.

        luminance, contrast, structure: alpha, beta, gamma of eq 7, divided by their sum. Give structure the most where
        texture matters (the paper: carpet, leather, wood), luminance where brightness and colour matter (tile, pill,
        hazelnut). similarity_share: alpha of eq 10. sigma_first, sigma_last: px, start and end of the loss's sigma in
        each epoch. sigma_map: px, sigma of the map. first_share: stage 1's share of a fit. adaptive: use AW-SSIM;
        False: SSIM (eq 6) with one window. second_phase: with stage 2. similarity_map: use the similarity in the
        residual, not only pixel differences. typical: divide the map by the typical one (`detectors.residuals`).
        even_light: see `detectors.light`; None: decided from the good images.
        """
        super().__init__(even_light)
        total = luminance + contrast + structure
        self.weights = (luminance / total, contrast / total, structure / total)
        self.similarity_share = similarity_share
        self.sigma_first, self.sigma_last, self.sigma_map = sigma_first, sigma_last, sigma_map
        self.first_share = first_share
        self.learning_rate = learning_rate
        self.adaptive, self.second_phase, self.similarity_map = adaptive, second_phase, similarity_map
        w = width
        widths = ((3, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w))
        self.encoder = nn.ModuleList(convolution(a, b, 4, 2) for a, b in widths)
        self.bottleneck = nn.Sequential(convolution(8 * w, 8 * w), convolution(8 * w, 8 * w))
        self.decoder = nn.ModuleList([
            deconvolution(8 * w, 4 * w), nn.Sequential(convolution(8 * w, 4 * w), deconvolution(4 * w, 2 * w)),
            nn.Sequential(convolution(4 * w, 2 * w), deconvolution(2 * w, w)),
        ])
        self.last = nn.ConvTranspose2d(w, 3, 4, 2, 1)
        self.register_buffer("window", gaussian_window(sigma_map), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps_per_epoch", torch.ones((), dtype=torch.int64))
        self.register_buffer("typical", torch.ones(4 if adaptive else 2))
        self.typical_map = TypicalMap() if typical else None
        # In a tuple, so that it is no submodule: neither saved nor exported.
        self._perceptual: tuple[Backbone, ...] = ()

    def use_backbone(self, backbone: Backbone) -> None:
        self._perceptual = (backbone,)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Image ``[N, 3, H, W]`` -> its reconstruction, in 0..1.

        There are two skip connections, at 1/8 and 1/4 of the side: more of them let defects through (section 3.1).
        """
        half = self.encoder[0](image - 0.5)
        quarter = self.encoder[1](half)
        eighth = self.encoder[2](quarter)
        x = self.decoder[0](self.bottleneck(self.encoder[3](eighth)))
        x = self.decoder[1](torch.cat((x, eighth), 1))
        x = self.decoder[2](torch.cat((x, quarter), 1))
        return torch.sigmoid(self.last(x).float())

    def dissimilarity(self, x: Tensor, y: Tensor, window: Tensor) -> Tensor:
        """1 - AW-SSIM (eq 7) or 1 - SSIM (eq 6) at each position: ``[N, 3, H, W]`` -> same shape, 0 where equal."""
        luminance, contrast, structure = dissimilarities(x, y, window)
        if not self.adaptive:
            return 1 - (1 - luminance) * (1 - contrast) * (1 - structure)
        alpha, beta, gamma = self.weights
        return alpha * luminance + beta * contrast + gamma * structure

    def residuals(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """The differences of both, averaged over channels: ``[N, 4, H, W]``, 0 or more.

        They are luminance, contrast, structure and pixel values. With SSIM instead of AW-SSIM, ``[N, 2, H, W]``:
        1 - SSIM and pixel values.
        """
        parts = dissimilarities(image, reconstruction, self.window) if self.adaptive else (
            self.dissimilarity(image, reconstruction, self.window),)
        return torch.stack([part.mean(1) for part in (*parts, (image - reconstruction).abs())], 1).clamp_min(0)

    def anomaly_map(self, image: Tensor) -> Tensor:
        reconstruction = self.reconstruct(image)
        if self.similarity_map and self.adaptive:  # normalised `residuals`, but with two means instead of five
            luminance, contrast, structure = dissimilarities(image, reconstruction, self.window)
            units = 1 / (len(self.typical) * self.typical)
            others = luminance * units[0] + contrast * units[1] + (image - reconstruction).abs() * units[3]
            result = others.mean(1, keepdim=True) + units[2] * structure.mean(1, keepdim=True).clamp_min(0)
        elif self.similarity_map:
            result = (self.residuals(image, reconstruction) / self.typical[:, None, None]).mean(1, keepdim=True)
        else:
            result = (image - reconstruction).abs().mean(1, keepdim=True)
        return result if self.typical_map is None else self.typical_map(result)

    def finish(self, pixels: NDArray[np.uint8]) -> None:
        """Measure each residual's mean, by which it is divided before all are added, and the typical map."""
        sums = [self.residuals(image, self.reconstruct(image)).mean((2, 3)).sum(0) for image in in_batches(pixels)]
        self.typical.copy_((torch.stack(sums).sum(0) / len(pixels)).clamp_min(1e-6))
        if self.typical_map is not None:
            self.typical_map.set(cell_maps(self.anomaly_map, pixels))

    # --- Fitting ---

    def phases(self, size: int) -> list[Phase]:
        views = Views(min(PATCH, size))
        share = self.first_share if self.second_phase else 1.0
        stages = [Phase("good patches", share, self.losses, views, BATCH, self.learning_rate, defective=0.0,
                        start=self.start_epochs)]
        if self.second_phase:
            stages.append(Phase("repair", 1 - share, self.repair_losses, views, BATCH, self.learning_rate,
                                defective=0.85))
        return stages

    def start_epochs(self, pixels: NDArray[np.uint8]) -> None:
        """Count the steps of an epoch over images ``[N, H, W, C]``: the factor of k in eq 9."""
        images, height, width, _ = pixels.shape
        self.steps_per_epoch.fill_(max(1, round(images / BATCH * max(1, height / PATCH) * max(1, width / PATCH))))
        self.step.zero_()

    def sigma(self) -> float:
        """Eq 9, in px: grows by k each step, restarts with each epoch; k is such that an epoch ends at sigma_last."""
        if not self.adaptive:
            return PLAIN_SIGMA
        k = (self.sigma_last - self.sigma_first) / int(self.steps_per_epoch)
        return self.sigma_first + k * int(self.step % self.steps_per_epoch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Stage 1: 1 - AW-SSIM."""
        return {"similarity": self.similarity_loss(batch, self.reconstruct(batch.image))}

    def repair_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Stage 2, the two terms of eq 10 (which prints AW-SSIM for its loss), against the image without defects."""
        reconstruction = self.reconstruct(batch.image)
        terms = {"similarity": self.similarity_share * self.similarity_loss(batch, reconstruction)}
        if self.similarity_share < 1:
            (backbone,) = self._perceptual
            with torch.no_grad():
                clean = backbone(batch.clean)
            terms["perceptual"] = (1 - self.similarity_share) * perceptual_distance(backbone(reconstruction), clean)
        return terms

    def similarity_loss(self, batch: Batch, reconstruction: Tensor) -> Tensor:
        """1 - AW-SSIM to the image without defects, in float32. Also counts the step."""
        with torch.autocast(reconstruction.device.type, enabled=False):
            loss = self.dissimilarity(batch.clean, reconstruction, gaussian_window(self.sigma())).mean()
        self.step += 1
        return loss

    def make_defects(self, image: Image, rng: np.random.Generator, natural: NaturalImages) -> tuple[Image, Image]:
        """ADGA, eq 1: paste one to four polygons at random positions.

        They come from a natural image or from the same surface with a changed appearance; the paper picks source images
        that resemble the surface. Sides are 3 % to 50 % of the view's. The opacity is random too, so that the network
        learns faint defects; the mask is where it exceeds 0.05.
        """
        height, width, channels = image.shape
        defective, mask = image.copy(), np.zeros((height, width, 1), np.float32)
        for _ in range(int(rng.integers(1, 5))):
            use_natural = rng.random() < 0.5
            source = natural.crop(rng, height, width, channels) if use_natural else changed_appearance(image, rng)
            h, w = np.maximum(3, np.exp(rng.uniform(np.log(0.03), np.log(0.5), 2)) * (height, width)).astype(int)
            part, opacity = cut_polygon(source, rng, int(h), int(w))
            opacity *= np.float32(rng.uniform(0.3, 1.0))
            y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            defective = paste(defective, part, opacity, y, x)
            mask[y:y + h, x:x + w] = np.maximum(mask[y:y + h, x:x + w], opacity > 0.05)
        return defective, mask


def paste(target: Image, part: Image, opacity: Image, y: int, x: int) -> Image:
    """Paste of eq 1: ``target`` ``[H, W, C]`` with ``part`` ``[h, w, C]`` over it at row y, column x.

    opacity: ``[h, w, 1]`` in 0..1.
    """
    result, (h, w) = target.copy(), part.shape[:2]
    result[y:y + h, x:x + w] = opacity * part + (1 - opacity) * target[y:y + h, x:x + w]
    return result


def cut_polygon(source: Image, rng: np.random.Generator, height: int, width: int) -> tuple[Image, Image]:
    """GB(Resize(crop(I_S))) of eq 1: a crop of ``source`` ``[H, W, C]`` resized to ``[height, width, C]``.

    Also returns its opacity ``[height, width, 1]`` in 0..1: a polygon of 3 to 7 random vertices with a blurred edge.
    """
    h, w = np.maximum(3, rng.uniform(0.05, 0.5, 2) * source.shape[:2]).astype(int)
    y, x = rng.integers(0, source.shape[0] - h + 1), rng.integers(0, source.shape[1] - w + 1)
    part = cv2.resize(source[y:y + h, x:x + w], (width, height), interpolation=cv2.INTER_LINEAR)
    part = part.reshape(height, width, -1)
    vertices = rng.random((int(rng.integers(3, 8)), 2))
    from_middle = vertices - vertices.mean(axis=0)
    # Sorted by angle, so that edges do not cross.
    vertices = vertices[np.argsort(np.arctan2(from_middle[:, 1], from_middle[:, 0]))]
    vertices = (vertices - vertices.min(axis=0)) / np.ptp(vertices, axis=0) * (width - 1, height - 1)
    polygon = cv2.fillPoly(np.zeros((height, width), np.float32), [np.rint(vertices).astype(np.int32)], 1.0)
    blur = rng.uniform(0.3, min(1.5, 0.3 + 0.1 * min(height, width)))
    opacity = cv2.GaussianBlur(polygon, (0, 0), float(blur), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(part, np.float32), np.asarray(opacity[..., None], np.float32)

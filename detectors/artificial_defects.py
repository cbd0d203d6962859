"""Artificial defects, made from good images during the fit. A fit never sees a real defect."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from detectors.natural import NaturalImages

Image = NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, height: int, width: int, scale: float) -> Image:
    """Gaussian noise ``[height, width]`` correlated over about ``scale`` px, with zero mean and unit deviation."""
    rows, columns = max(2, round(height / scale)), max(2, round(width / scale))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    field = coarse if scale <= 1 else cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    field = field[:height, :width] - field.mean()
    return np.asarray(field / (field.std() + 1e-6), dtype=np.float32)


def random_mask(rng: np.random.Generator, height: int, width: int) -> Image:
    """A random mask, float32 ``[height, width]`` of 0 and 1: a blob, a ragged patch or a thin stroke of any size."""
    size = min(height, width)
    mask = np.zeros((height, width), np.float32)
    centre = rng.uniform(0, 1, 2) * (width, height)
    kind = rng.integers(4)
    if kind == 0:  # a stroke: scratch, cut, thread
        points = centre + np.cumsum(rng.normal(0, size * rng.uniform(0.02, 0.12), (rng.integers(3, 8), 2)), axis=0)
        thickness = int(rng.integers(1, max(2, size // 24) + 1))
        cv2.polylines(mask, [np.rint(points).astype(np.int32)], False, 1.0, thickness)
    elif kind == 1:  # a polygon: chip, fold, foreign body
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radius = np.exp(rng.uniform(np.log(0.02), np.log(0.35))) * size * rng.uniform(0.5, 1.0, angles.size)
        points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1.0)
    elif kind == 2:  # an ellipse: hole, drop
        axes = np.exp(rng.uniform(np.log(0.01), np.log(0.22), 2)) * size + 1
        box = (tuple(map(float, centre)), tuple(map(float, 2 * axes)), float(rng.uniform(0, 180)))
        cv2.ellipse(mask, box, 1.0, -1)
    else:  # ragged patches: stain, wear
        field = smooth_noise(rng, height, width, np.exp(rng.uniform(np.log(0.04), np.log(0.6))) * size)
        ys, xs = np.mgrid[:height, :width].astype(np.float32)
        reach = rng.uniform(0.1, 0.5) * size
        near = np.exp(-((xs - centre[0]) ** 2 + (ys - centre[1]) ** 2) / (2 * reach**2))
        mask = (field * near > rng.uniform(0.4, 1.1)).astype(np.float32)
    return mask


def gaussian_noise_defects(image: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    """SIDN's DGM, eq 1: I_n = (1 - I_m) I_p + I_m I_g.

    image: float32 ``[H, W, C]`` in 0..1, good. Returns the defective image and its mask, float32 ``[H, W, 1]``, 0 or 1.
    The paper's I_g is "random Gaussian sampling"; it leaves mean, deviation and correlation length open, so they are
    random for each defect. I_m is 0.25 to 1 inside the mask, sometimes with a soft edge, so that the network also
    learns defects through which the texture is visible.
    """
    height, width, channels = image.shape
    defective = image.copy()
    union = np.zeros((height, width), np.float32)
    size = min(height, width)
    mean = image.mean(axis=(0, 1))
    for _ in range(int(rng.integers(1, 4))):
        mask = random_mask(rng, height, width)
        if not mask.any():
            continue
        blend = mask * np.float32(rng.uniform(0.25, 1.0))
        if rng.random() < 0.5:
            blend = cv2.GaussianBlur(blend, (0, 0), float(rng.uniform(0.5, 2.0)))
        shift = rng.normal(0, 0.25)
        deviation = rng.uniform(0.0, 0.25)
        scale = float(np.exp(rng.uniform(0, np.log(size / 4))))
        noise = smooth_noise(rng, height, width, scale)[..., None] * deviation + mean
        noise = noise + shift * rng.uniform(0.8, 1.2, channels)
        defective = (1 - blend[..., None]) * defective + blend[..., None] * noise.astype(np.float32)
        union = np.maximum(union, mask)
    return np.clip(defective, 0, 1).astype(np.float32), union[..., None]


def changed_appearance(image: Image, rng: np.random.Generator) -> Image:
    """The same surface as a stain, wear or a film would show it: float32 ``[H, W, C]`` in 0..1, changed everywhere.

    Darker or lighter, tinted, of other contrast, blurred, grainy, or another place of the same image at another scale.
    """
    height, width, channels = image.shape
    kind = rng.integers(5)
    mean = np.asarray(image.mean(axis=(0, 1)))
    other: NDArray[np.float32]
    if kind == 0:  # darker
        other = image * np.float32(rng.uniform(0.1, 0.85))
    elif kind == 1:  # lighter
        other = 1 - (1 - image) * np.float32(rng.uniform(0.1, 0.85))
    elif kind == 2:  # a film: other contrast, tinted
        tint = rng.uniform(-0.15, 0.15) + np.asarray(rng.uniform(-0.1, 0.1, channels))
        other = mean + (image - mean) * np.float32(rng.uniform(0.1, 1.6)) + tint.astype(np.float32)
    elif kind == 3:  # smeared or grainy
        sigma = np.exp(rng.uniform(np.log(0.8), np.log(0.06 * min(height, width) + 1)))
        blurred = cv2.GaussianBlur(image, (0, 0), float(sigma))
        grain = smooth_noise(rng, height, width, float(rng.uniform(1, 4)))[..., None] * np.float32(rng.uniform(0, 0.12))
        other = blurred.reshape(image.shape) + grain
    else:  # another place at another scale
        side = max(8, int(min(height, width) * rng.uniform(0.25, 0.9)))
        y, x = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        part = cv2.resize(image[y:y + side, x:x + side], (width, height), interpolation=cv2.INTER_LINEAR)
        part = part.reshape(image.shape)
        turned = np.rot90(part, int(rng.integers(4))) if height == width else part[::-1]
        other = np.asarray(turned + rng.uniform(-0.1, 0.1), np.float32)
    return np.clip(other, 0, 1).astype(np.float32)


def blended_defects(image: Image, rng: np.random.Generator, natural: NaturalImages,
                    natural_share: float) -> tuple[Image, Image]:
    """Blend regions of an image with natural images (Zavrtanik et al., DRAEM, 2021) or with its own changed appearance.

    image: float32 ``[H, W, C]`` in 0..1, good. natural_share: the probability of a natural image. Returns the defective
    image and its mask, float32 ``[H, W, 1]``, 0 or 1.
    """
    height, width, channels = image.shape
    defective, union = image.copy(), np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        mask = random_mask(rng, height, width)
        if not mask.any():
            continue
        soft = cv2.GaussianBlur(mask, (0, 0), float(rng.uniform(0.5, 2.0))) if rng.random() < 0.5 else mask
        blend = (soft * np.float32(rng.uniform(0.3, 1.0)))[..., None]
        use_natural = rng.random() < natural_share
        other = natural.crop(rng, height, width, channels) if use_natural else changed_appearance(defective, rng)
        defective = (1 - blend) * defective + blend * other
        union = np.maximum(union, mask)
    return np.clip(defective, 0, 1).astype(np.float32), union[..., None]

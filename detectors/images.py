"""The good images of a fit: find them, and hold a seeded share of them out, with near-duplicates kept together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from edge.base.errors import InputError
from edge.images.files import good_folder, list_images, read_image
from edge.images.frames import Frame, FrameSizes, frame_hash, is_grey, prepare_frame
from edge.images.tiles import Tiles

HELD_OUT_SHARE = 0.2
# Likeness. Different places of the textures tried stay below 0.18; shifted and relit copies stay above 0.38.
NEAR_DUPLICATE = 0.3
MOST_BYTES = 6_000_000_000  # of all tiles
UNUSUAL = 5  # distances between median and lower quartile of all likenesses
CERTAIN = 0.75  # a likeness that two different parts never reach
MINIATURE = 64  # px


@dataclass(frozen=True)
class GoodImage:
    """A good image: its path relative to the data folder, and the hash of its pixels."""

    name: str
    sha256: str


@dataclass(frozen=True)
class GoodImages:
    """The good images of a data folder at a network's size, split into fitted and held-out ones."""

    folder: Path
    sizes: FrameSizes
    fitted: list[GoodImage]
    held_out: list[GoodImage]
    pixels: NDArray[np.uint8]  # the fitted ones, [N, H, W, C]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all images, independent of their names and order."""
        digest = hashlib.sha256()
        for sha256 in sorted(image.sha256 for image in self.fitted + self.held_out):
            digest.update(bytes.fromhex(sha256))
        return digest.hexdigest()


def phase_spectrum(frame: Frame) -> NDArray[np.complex64]:
    """The phase spectrum of a frame's 64x64 grey miniature, complex64 ``[64, 33]``, for `likeness`."""
    small = np.empty((MINIATURE, MINIATURE, 1), np.uint8)
    prepare_frame(frame, small)
    level = small[..., 0].astype(np.float32)
    spectrum = np.fft.rfft2((level - level.mean()) * np.outer(np.hanning(MINIATURE), np.hanning(MINIATURE)))
    magnitude = np.abs(spectrum)
    return np.asarray(spectrum / (magnitude + 1e-6 * magnitude.max() + 1e-12), dtype=np.complex64)


def likeness(one: NDArray[np.complex64], others: NDArray[np.complex64]) -> NDArray[np.float32]:
    """The peak of the phase correlation (Kuglin and Hines 1975) of one spectrum with others ``[N, 64, 33]``.

    Returns float32 ``[N]``: 1 for the same view, even shifted or relit; about 0.1 for two places of one texture, even a
    regular one.
    """
    surface = np.fft.irfft2(one[None] * others.conj(), s=(MINIATURE, MINIATURE))
    return np.asarray(surface.max(axis=(1, 2)), dtype=np.float32)


def near_duplicate_groups(spectra: NDArray[np.complex64]) -> list[list[int]]:
    """The indices of phase spectra ``[N, 64, 33]`` in groups of near-duplicates, by average linkage of their likeness.

    All images of one object are alike; near-duplicates are far more alike than two images usually are.
    """
    alike = np.zeros((len(spectra), len(spectra)), np.float32)
    for index, one in enumerate(spectra):
        alike[index, index:] = alike[index:, index] = likeness(one, spectra[index:])
    # The spread is measured below the median: above it, a part photographed often may have produced duplicates.
    lower, usual = np.percentile(alike[np.triu_indices(len(alike), 1)], [25, 50]) if len(alike) > 1 else (0.0, 0.0)
    # If nearly all images are that alike, they show an object in a fixture, and pixels cannot distinguish two objects
    # from one object seen twice.
    limit = max(NEAR_DUPLICATE, min(usual + UNUSUAL * (usual - lower), CERTAIN if usual < CERTAIN else 1.0))
    if len(alike) < 2:
        return [[0]]
    # Average linkage: turned parts each resemble the few at nearly the same angle, and a chain of those is no group.
    tree = linkage(squareform(1 - np.clip(alike, 0, 1), checks=False), "average")
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(fcluster(tree, 1 - limit, "distance").tolist()):
        groups.setdefault(group, []).append(index)
    return list(groups.values())


def split(groups: list[list[int]], seed: int) -> list[int]:
    """The indices to hold out: whole groups in seeded order, up to 20 % of all images, and at least one group.

    Raises InputError if there is only one group.
    """
    total = sum(map(len, groups))
    wanted = max(1, round(HELD_OUT_SHARE * total))
    held_out: list[int] = []
    for position in np.random.default_rng(seed).permutation(len(groups)).tolist():
        group = groups[position]
        if len(held_out) + len(group) <= wanted:
            held_out += group
    if not held_out and len(groups) > 1:
        held_out = min(groups, key=len)
    if not held_out:
        raise InputError("all good images are near-duplicates of each other", got=f"{total} images of one view",
                         expected="images of different parts, so that some can be held out for the threshold")
    return sorted(held_out)


def cut(frame: Frame, tile: int | None) -> list[Frame]:
    """The square tiles that cover a frame, ``tile`` px a side; None: the whole frame.

    Raises InputError for a frame smaller than a tile.
    """
    if tile is None:
        return [frame]
    tiles = Tiles((frame.shape[0], frame.shape[1]), (tile, tile), 0, (tile, tile))
    return [tiles.cut(frame, index) for index in range(len(tiles))]


def load_good_images(data: Path, height: int, width: int, channels: int, seed: int,
                     tile: int | None = None) -> GoodImages:
    """Read the good images of ``data``, drop exact copies, split them, and prepare the fitted ones: ``[N, H, W, C]``.

    tile: side in px of the square tiles that the network sees instead of whole images; N then counts tiles.
    Raises InputError for a missing or empty folder, an unreadable image, mixed grey and colour, or fewer than 4 images.
    """
    folder = good_folder(data)
    images: list[GoodImage] = []
    sizes: list[tuple[int, int]] = []
    grey: list[bool] = []
    pixels: list[list[NDArray[np.uint8]]] = []
    spectra = []
    seen: set[str] = set()
    for path in list_images(folder):
        frame = read_image(path)  # not kept: a thousand frames of 5 megapixels would fill the memory
        sha256 = frame_hash(frame)
        if sha256 in seen:
            continue
        seen.add(sha256)
        images.append(GoodImage(path.relative_to(folder).as_posix(), sha256))
        views = cut(frame, tile)
        sizes.append((views[0].shape[0], views[0].shape[1]))
        grey.append(is_grey(frame))
        prepared = np.empty((len(views), height, width, channels), np.uint8)
        for view, out in zip(views, prepared, strict=True):
            prepare_frame(view, out)
        pixels.append(list(prepared))
        if sum(map(len, pixels)) * prepared[0].nbytes > MOST_BYTES:
            raise InputError("the tiles of the good images do not fit into memory", 
                             got=f"more than {MOST_BYTES / 1e9:g} GB", next="Give larger tiles, or fewer images.")
        spectra.append(phase_spectrum(frame))
    if len(images) < 4:
        raise InputError(f"too few good images in {folder}", got=f"{len(images)} different ones",
                         expected="at least 4, better 50")
    frame_sizes = FrameSizes.of(sizes, grey)
    held_out = set(split(near_duplicate_groups(np.stack(spectra)), seed))
    fitted = [i for i in range(len(images)) if i not in held_out]
    return GoodImages(folder, frame_sizes, [images[i] for i in fitted], [images[i] for i in sorted(held_out)],
                      np.stack([view for i in fitted for view in pixels[i]]))


def as_input(pixels: NDArray[np.uint8]) -> Tensor:
    """Images uint8 ``[N, H, W, C]`` as the network's input: float32 ``[N, C, H, W]`` in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255


def miniatures(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small, grey, blurred versions of images uint8 ``[N, H, W, C]``: float32 ``[N, 64, 64]``, each with mean 0 and
    deviation 1.
    """
    small = [cv2.resize(image.mean(axis=2, dtype=np.float32), (MINIATURE, MINIATURE), interpolation=cv2.INTER_AREA)
             for image in pixels]
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 1.5) for image in small])
    centred = blurred - blurred.mean(axis=(1, 2), keepdims=True)
    return np.asarray(centred / (centred.std(axis=(1, 2), keepdims=True) + 1e-6), dtype=np.float32)


def most_typical(small: NDArray[np.float32]) -> int:
    """The index of the miniature among ``[N, h, w]`` with the highest total correlation with all others."""
    flat = small.reshape(len(small), -1)
    return int(np.argmax(flat @ flat.sum(axis=0)))


def positions_differ(pixels: NDArray[np.uint8]) -> bool:
    """Whether each position of the image shows the same thing in all images uint8 ``[N, H, W, C]``.

    True for an object in a fixture, False for a texture.
    """
    small = miniatures(pixels)
    noise = 1 / len(small)
    return bool((small.mean(axis=0).var() - noise) / (1 - noise) > 0.2)

"""Reading, resizing and tiling images: the same code for fitting and for the line.

A *frame* is a C-contiguous uint8 array ``[H, W, C]`` with C = 1 (grey) or 3 (RGB order).

Frames that are larger than what the network sees go through it in overlapped tiles, and one map is blended from the tiles' maps. Blobs
are found on that, so that a defect on a seam is one blob. The weights of a tile fall linearly over its overlap with the next one and add
up to 1 at each pixel: a partition of unity, the product of one for the rows and one for the columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import InputError

__all__ = [
    "IMAGE_SUFFIXES",
    "Frame",
    "FrameSizes",
    "InputError",
    "Tiles",
    "frame_hash",
    "is_grey",
    "list_images",
    "prepare_frame",
    "read_image",
    "write_image",
]

Frame = NDArray[np.uint8]
Weights = NDArray[np.float32]
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MIN_SIDE = 16  # px; below this a frame has no texture left to judge


def list_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, sorted by path. Raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError(
            f"no folder of images at {folder}", got="a file" if folder.exists() else "nothing",
            expected="a folder with " + ", ".join(sorted(IMAGE_SUFFIXES)) + " files",
        )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise InputError(
            f"no image in {folder}", got="0 images", expected="files ending in " + ", ".join(sorted(IMAGE_SUFFIXES)),
        )
    return files


def good_folder(data: Path) -> Path:
    """Where the good images of ``data`` are: ``train/good`` (MVTec AD layout), ``good``, or the folder itself.

    Raises InputError for a folder with sub-folders and no such name: what is in them may be defects or masks.
    """
    if (data / "train").is_dir():
        if not (data / "train" / "good").is_dir():
            raise InputError(f"{data / 'train'} has no folder 'good'", expected="train/good/ with images of good parts")
        return data / "train" / "good"
    if (data / "good").is_dir():
        return data / "good"
    inner = [path.name for path in sorted(data.iterdir()) if path.is_dir() and path.name[0] != "."] if data.is_dir() else []
    if inner:
        raise InputError(f"{data} does not say which of its images are good", got="folders " + ", ".join(inner[:5]),
                         expected="a folder of good images alone, or one with train/good/ or good/")
    return data


def read_image(path: Path) -> Frame:
    """Read an 8-bit grey or colour image file.

    Returns uint8 ``[H, W, C]``, C = 1 or 3 (RGB). A fourth, alpha channel is refused: no camera has one.
    Raises InputError when the file is missing, unreadable, cut short, not 8-bit, or smaller than 16 px a side.
    """
    # The message below says it once; OpenCV would say it again on stderr.
    (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read image {path}", got=error.strerror, expected="a readable image file") from error
    whole = not data.startswith(b"\xff\xd8") or b"\xff\xd9" in data[-4096:]  # OpenCV fills a cut JPEG with grey
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data and whole else None
    except (cv2.error, MemoryError):  # a header that promises more than there is
        image = None
    if image is None:
        raise InputError(
            f"cannot decode image {path}", got=f"{len(data)} bytes that are no whole image",
            expected="a complete " + ", ".join(sorted(IMAGE_SUFFIXES)) + " file", next="Copy or record it again.",
        )
    if image.dtype != np.uint8:
        raise InputError(f"image {path} is not 8-bit", got=f"{image.dtype} pixels", expected="uint8 pixels",
                         next="Set the camera to Mono8 or RGB8.")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] not in (1, 3):
        raise InputError(f"image {path} has a wrong channel count", got=f"{image.shape[2]} channels",
                         expected="1 (grey) or 3 (colour)", next="Save it without an alpha channel.")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"image {path} is too small", got=f"{width}x{height} px",
                         expected=f"at least {MIN_SIDE}x{MIN_SIDE} px")
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(image, dtype=np.uint8)


def write_image(path: Path, frame: NDArray[np.uint8]) -> None:
    """Write uint8 ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` (RGB) under a temporary name, then rename it to ``path``."""
    if frame.ndim == 3 and frame.shape[2] == 3:
        frame = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), dtype=np.uint8)
    ok, data = cv2.imencode(path.suffix, frame)
    if not ok:
        raise InputError(f"cannot encode {path}", got=f"shape {frame.shape}", expected="a grey or RGB image")
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data.tobytes())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def frame_hash(frame: Frame) -> str:
    """SHA-256 of a frame's pixels and shape: the same for a copy under another name or in another lossless format.

    Grey counts as one channel, also where a format stores it as three.
    """
    if is_grey(frame):
        frame = frame[..., :1]
    digest = hashlib.sha256(repr(frame.shape).encode())
    digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def is_grey(frame: Frame) -> bool:
    """Whether a frame carries no colour: one channel, or three that are equal everywhere."""
    if frame.shape[2] == 1:
        return True
    return bool(np.array_equal(frame[..., 0], frame[..., 1]) and np.array_equal(frame[..., 1], frame[..., 2]))


@dataclass(frozen=True)
class FrameSizes:
    """The frame sizes (px) that a model was fitted on, and whether those frames were in colour."""

    min_width: int
    max_width: int
    min_height: int
    max_height: int
    colour: bool

    @staticmethod
    def of(sizes: Sequence[tuple[int, int]], grey: Sequence[bool]) -> FrameSizes:
        """Of frames given by (height, width) and `is_grey`. Raises InputError when grey and colour are mixed."""
        if any(grey) and not all(grey):
            raise InputError("grey and colour images are mixed", got=f"{sum(grey)} grey and {len(grey) - sum(grey)} colour",
                             expected="all of one kind, as the camera delivers them")
        heights, widths = zip(*sizes, strict=True)
        return FrameSizes(min(widths), max(widths), min(heights), max(heights), not grey[0])

    def check(self, frame: Frame, seen: tuple[int, int] | None = None) -> None:
        """Raise InputError when a frame's size or channels are so unlike the fitted ones that a verdict means nothing.

        seen: (height, width) of what the network sees of it at once, where that is not all of it.
        """
        height, width = seen or frame.shape[:2]
        if not (self.min_width <= 2 * width <= 4 * self.max_width and self.min_height <= 2 * height <= 4 * self.max_height):
            raise InputError(
                "the frame's size does not fit the model" if seen is None else "the tiles' size does not fit the model",
                got=f"{width}x{height} px",
                expected=f"between half and double of the fitted {self.min_width}-{self.max_width} x "
                         f"{self.min_height}-{self.max_height} px",
                next="Use the camera settings of the fit, or run `lineside fit` on frames of this size.",
            )
        if (self.colour and frame.shape[2] != 3) or (not self.colour and not is_grey(frame)):
            raise InputError(
                "the frame has a wrong channel count",
                got="a grey frame (1 channel)" if frame.shape[2] == 1 else "a colour frame (3 channels)",
                expected="colour (3 channels)" if self.colour else "grey (1 channel)",
                next="Use the camera's pixel format of the fit, or run `lineside fit` on such frames.",
            )


def prepare_frame(frame: Frame, out: Frame) -> None:
    """Write a frame (uint8 ``[H, W, C]``) into a network input ``out`` (uint8 ``[h, w, c]``): channels, then size.

    Colour becomes grey for a one-channel network (ITU-R 601 weights); grey never becomes colour: it is repeated
    over equal channels. Shrinking averages over areas, growing interpolates bilinearly.
    """
    if out.shape[2] == 1 and frame.shape[2] == 3:
        frame = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[:, :, None]
    elif out.shape[2] == 3 and frame.shape[2] == 1:
        frame = np.asarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    height, width = out.shape[:2]
    if frame.shape[:2] == (height, width):
        np.copyto(out, frame)
        return
    shrinks = frame.shape[0] * frame.shape[1] > height * width
    resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    np.copyto(out, resized.reshape(out.shape))


class _Axis:
    """The tiles along one side of a frame."""

    def __init__(self, length: int, tile: int, overlap: int, side: int) -> None:
        """length, tile, overlap: in px of the frame; side: px of a tile's map. ``offsets`` are in px of the blended map."""
        scale = tile / side
        self.length = max(side, ceil(length / scale - 1e-9))
        step = max(1, side - ceil(overlap / scale))
        count = 1 + ceil((self.length - side) / step)
        self.offsets = [round(float(offset)) for offset in np.linspace(0, self.length - side, count)]
        self.pixels = [round(float(offset)) for offset in np.linspace(0, length - tile, count)]  # off by less than a px of the map
        self._side = side

    @cached_property
    def weights(self) -> list[Weights]:
        """Of each tile, float32 ``[side]``."""
        side, offsets = self._side, self.offsets
        ramp = (np.arange(side) + 0.5).astype(np.float32)
        found = []
        for i, offset in enumerate(offsets):
            left = ramp / max(1, offsets[i - 1] + side - offset) if i else np.ones(side, np.float32)
            right = ramp[::-1] / max(1, offset + side - offsets[i + 1]) if i + 1 < len(offsets) else np.ones(side, np.float32)
            found.append(np.minimum(1, np.minimum(left, right)))
        total = np.zeros(self.length, np.float32)
        for offset, weights in zip(offsets, found, strict=True):
            total[offset:offset + side] += weights
        return [np.asarray(weights / total[offset:offset + side], np.float32) for offset, weights in zip(offsets, found, strict=True)]


class Tiles:
    """The tiles of frames of one size."""

    def __init__(self, frame_size: tuple[int, int], tile: tuple[int, int], overlap: int, map_size: tuple[int, int]) -> None:
        """frame_size, tile: (height, width) in px of the frame. overlap: of neighbours, px of the frame at least. map_size: (height, width)
        of one tile's map. Raises InputError for a frame that is smaller than a tile."""
        if frame_size[0] < tile[0] or frame_size[1] < tile[1]:
            raise InputError("the frame is smaller than a tile", got=f"{frame_size[1]}x{frame_size[0]} px",
                             expected=f"at least {tile[1]}x{tile[0]} px", next="Mend `tile` in decision.toml, or the camera's size.")
        self._tile, self._side = tile, map_size
        self._axes = [_Axis(*sizes) for sizes in zip(frame_size, tile, (overlap, overlap), map_size, strict=True)]
        self.map_size = (self._axes[0].length, self._axes[1].length)
        rows, columns = (range(len(axis.offsets)) for axis in self._axes)
        self._grid = [(row, column) for row in rows for column in columns]
        self._weights: dict[tuple[bytes, bytes], tuple[Weights, tuple[int, int], tuple[int, int]]] = {}  # most tiles have the same

    def __len__(self) -> int:
        return len(self._grid)

    def keep(self, region: NDArray[np.bool_]) -> None:
        """Leave out the tiles that show nothing of a region, bool of the blended map's size."""
        self._grid = [place for place in self._grid if region[self._window(place)].any()]

    def _window(self, place: tuple[int, int]) -> tuple[slice, slice]:
        top, left = (axis.offsets[i] for axis, i in zip(self._axes, place, strict=True))
        return slice(top, top + self._side[0]), slice(left, left + self._side[1])

    def cut(self, frame: Frame, index: int) -> Frame:
        """A tile of a frame, a view of it."""
        top, left = (axis.pixels[i] for axis, i in zip(self._axes, self._grid[index], strict=True))
        return frame[top:top + self._tile[0], left:left + self._tile[1]]

    def add(self, index: int, tile_map: NDArray[np.float32], blended: NDArray[np.float32]) -> None:
        """Blend a tile's map into ``blended``, which begins as zeros: float32, C-contiguous."""
        place = self._grid[index]
        weights, (top, bottom), (left, right) = self._shares(place)
        into = blended[self._window(place)]
        into[top:bottom, left:right] = tile_map[top:bottom, left:right]  # no other tile has a share there
        for strip in ((slice(None, top), slice(None)), (slice(bottom, None), slice(None)), (slice(top, bottom), slice(None, left)),
                      (slice(top, bottom), slice(right, None))):
            if into[strip].size:
                cv2.accumulateProduct(tile_map[strip], weights[strip], into[strip])

    def _shares(self, place: tuple[int, int]) -> tuple[Weights, tuple[int, int], tuple[int, int]]:
        """A tile's weights, and the rows and columns, from and to, between which they are 1."""
        along = [axis.weights[i] for axis, i in zip(self._axes, place, strict=True)]
        key = along[0].tobytes(), along[1].tobytes()
        if key not in self._weights:
            alone = [np.flatnonzero(weights == 1) for weights in along]
            rows, columns = ((int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0) for at in alone)
            self._weights[key] = np.outer(*along), rows, columns
        return self._weights[key]

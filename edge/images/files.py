"""Image files: listing, reading and writing them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError
from edge.images.frames import Frame

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
    inner = [path.name for path in sorted(data.iterdir()) if path.is_dir()
             and path.name[0] != "."] if data.is_dir() else []
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
    """Write uint8 ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` (RGB) under a temporary name, then rename it to
    ``path``.
    """
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

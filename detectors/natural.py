"""Natural images for artificial defects: the photographs inside scikit-image, or a folder of the user's."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError
from edge.images.files import list_images, read_image

PACKAGED = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)
SIDE = 512  # px; larger images are shrunk to this when they are read
MOST = 1000  # images read from a folder, at most


class NaturalImages:
    """Photographs of anything except the product. ``folder`` None: those inside scikit-image."""

    def __init__(self, folder: Path | None = None) -> None:
        """Raises InputError for a folder without images. The images are read when they are first needed."""
        self.folder = folder
        if folder is not None:
            if not folder.is_dir():
                raise InputError(f"no folder of natural images at {folder}", expected="a folder of photographs",
                                 next="Omit --natural-images to use the packaged photographs.")
            self._paths = list_images(folder)[:MOST]
        else:
            import skimage

            self._paths = [Path(skimage.__file__).parent / "data" / name for name in PACKAGED]

    @property
    def source(self) -> str:
        """A description of the source, for the run's record."""
        if self.folder is None:
            return f"scikit-image, {len(self._paths)} photographs"
        return f"{self.folder}, {len(self._paths)} images"

    @cached_property
    def _pixels(self) -> list[NDArray[np.uint8]]:
        pixels = []
        for path in self._paths:
            frame = read_image(path)
            scale = SIDE / max(frame.shape[:2])
            if scale < 1:
                shrunk = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                frame = np.asarray(shrunk, np.uint8).reshape(*shrunk.shape[:2], -1)
            pixels.append(np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame)
        return pixels

    def crop(self, rng: np.random.Generator, height: int, width: int, channels: int) -> NDArray[np.float32]:
        """A random crop, randomly scaled, mirrored and recoloured: float32 ``[height, width, channels]`` in 0..1."""
        image = self._pixels[rng.integers(len(self._pixels))]
        limit = min(image.shape[0] / height, image.shape[1] / width)
        scale = limit * rng.uniform(0.3, 1.0)
        h, w = max(2, int(height * scale)), max(2, int(width * scale))
        y, x = int(rng.integers(0, image.shape[0] - h + 1)), int(rng.integers(0, image.shape[1] - w + 1))
        part = image[y:y + h, x:x + w]
        if channels == 1:
            part = np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.uint8)
        crop = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR)
        crop = crop.reshape(height, width, channels)[::rng.choice((-1, 1)), ::rng.choice((-1, 1))]
        crop = crop.astype(np.float32) / 255
        if channels == 3 and rng.random() < 0.5:
            crop = crop[..., rng.permutation(3)]
        contrast, offset = rng.uniform(0.5, 1.3), rng.uniform(-0.25, 0.25)
        return np.asarray(np.clip((crop - 0.5) * contrast + 0.5 + offset, 0, 1), dtype=np.float32)

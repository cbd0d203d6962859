"""Measures exposure and focus of each image of a camera, and keeps the few images that are worth showing."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images.frames import Frame

BOX = (256, 192)  # px, width and height that a picture fits into
EVEN = 6  # number of pictures shown from the whole test, evenly spaced
KEPT = 8 * EVEN  # pictures kept to choose those from
AT_255, AT_0 = (255, 40, 40), (40, 110, 255)  # RGB of clipped pixels
DIM = 32.0  # grey levels; below this mean, noise would look like sharpness
MARKED = 0.1  # share of clipped pixels under one picture pixel from which that pixel is coloured


@dataclass(frozen=True)
class Look:
    """Exposure and focus of one image."""

    level: float  # mean grey level, 0..255
    low: float  # share of pixels at 0; in colour, of the channel with the fewest, as strong colours have a channel at 0
    high: float  # share of pixels at 255; in colour, of the channel with the most
    focus: float  # see `focus_measure`


@dataclass(frozen=True)
class Picture:
    """A small copy of an image with its clipped pixels coloured."""

    number: int  # of the image, from 0
    at: float  # s since the first image
    look: Look
    small: Frame  # uint8 RGB [h, w, 3]


def grey_of(image: Frame) -> NDArray[np.uint8]:
    """A frame in grey, uint8 ``[H, W]``."""
    return image[:, :, 0] if image.shape[2] == 1 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def focus_measure(grey: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a grey image ``[H, W]``, divided by the square of its mean (or of `DIM`, if larger).

    Exposure alone does not change it. Compare only images of one scene from one camera: texture and noise matter too.
    Pech-Pacheco, Cristóbal, Chamorro-Martínez, Fernández-Valdivia: Diatom autofocusing in brightfield microscopy: a
    comparative study. ICPR 2000 (its variance of the Laplacian).
    """
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return float(deviation[0, 0] ** 2 / max(DIM, float(cv2.mean(grey)[0])) ** 2)


def look_at(image: Frame) -> tuple[Look, NDArray[np.float64]]:
    """Measure a frame. Also returns its histogram: pixels per grey level, float64 ``[256]``."""
    grey = grey_of(image)
    counts = _histogram(grey, 0)
    channels = [counts] if image.shape[2] == 1 else [_histogram(image, channel) for channel in range(3)]
    low = float(min(channel[0] for channel in channels)) / grey.size
    high = float(max(channel[255] for channel in channels)) / grey.size
    return Look(float(counts @ np.arange(256)) / grey.size, low, high, focus_measure(grey)), counts


def _histogram(image: NDArray[np.uint8], channel: int) -> NDArray[np.float64]:
    return np.asarray(cv2.calcHist([image], [channel], None, [256], [0, 256]), np.float64).ravel()


def shrink(image: Frame) -> Frame:
    """The small copy of a frame for a `Picture`."""
    height, width = image.shape[:2]
    scale = min(BOX[0] / width, BOX[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    planes = cv2.split(image)
    brightest = darkest = planes[0]
    for plane in planes[1:]:
        brightest, darkest = cv2.max(brightest, plane), cv2.max(darkest, plane)
    small = cv2.resize(image, size, interpolation=how).reshape(size[1], size[0], -1)
    coloured = np.array(np.broadcast_to(small, (size[1], size[0], 3)), np.uint8)
    for plane, level, colour in ((darkest, 0, AT_0), (brightest, 255, AT_255)):
        clipped = cv2.resize(cv2.inRange(plane, level, level), size, interpolation=how)
        coloured[clipped > 255 * MARKED] = colour
    return coloured


@dataclass
class Album:
    """The figures of all images, and the pictures to show. Only the newest frame is kept in full size."""

    looks: list[tuple[float, Look]] = field(default_factory=list)  # with the time, s since the first image
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(256))  # histogram of all images together
    size: tuple[int, ...] = ()  # height, width, channels
    _named: dict[str, Picture] = field(default_factory=dict)
    _even: list[Picture] = field(default_factory=list)
    _step: int = 1  # images between two of `_even`
    _start: float = 0.0
    _newest: Frame | None = None

    def add(self, image: Frame, at: float) -> None:
        """Measure an image that came at ``at`` (s, of any clock)."""
        look, counts = look_at(image)
        number = len(self.looks)
        if number == 0:
            self._start, self.size = at, image.shape
        self.looks.append((at - self._start, look))
        self.counts += counts
        self._newest = image
        names = [name for name, picture in self._named.items() if _outdoes(name, look, picture.look)] if number else [
            "first", "sharpest", "least sharp", "brightest", "darkest"]
        evenly = number % self._step == 0
        if not names and not evenly:
            return
        picture = Picture(number, at - self._start, look, shrink(image))
        self._named.update(dict.fromkeys(names, picture))
        if evenly:
            self._even.append(picture)
            if len(self._even) == KEPT:
                self._even, self._step = self._even[::2], 2 * self._step

    def pictures(self) -> dict[str, Picture]:
        """The pictures that stand out, by name."""
        if self._newest is None:
            return {}
        at, look = self.looks[-1]
        return {"first": self._named["first"], "last": Picture(len(self.looks) - 1, at, look, shrink(self._newest)),
                **{name: picture for name, picture in self._named.items() if name != "first"}}

    def evenly(self) -> list[Picture]:
        """At most `EVEN` pictures, evenly spaced over the test."""
        places = np.unique(np.linspace(0, len(self._even) - 1, min(EVEN, len(self._even))).round().astype(int))
        return [self._even[place] for place in places]


def _outdoes(name: str, look: Look, other: Look) -> bool:
    return {"first": False, "sharpest": look.focus > other.focus, "least sharp": look.focus < other.focus,
            "brightest": look.level > other.level, "darkest": look.level < other.level}[name]

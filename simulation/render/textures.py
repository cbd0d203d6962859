"""The two products, before lighting: a woven web and printed plates.

Randomness depends on position: a value is a function of the seed and the place, so the same place looks the same in
every frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from simulation.render.defects import MARGIN, Field, Plate, Threads, Weave


def mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al., 2014): words that differ in one bit give unrelated words."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def keys(seed: int, channel: int, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    """A random word for each integer."""
    # Mixed before the ids are added: otherwise the next seed would give this seed's web, shifted.
    start = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)
                + np.uint64(channel * 0xD1B54A32D192ED03 & 0xFFFFFFFFFFFFFFFF))
    return (mix(start + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)).astype(np.uint32)


def noise(seed: int, channel: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Field:
    """White noise, float32 ``[rows, columns]``, uniform with mean 0 and deviation 1."""
    h = keys(seed, channel, rows)[:, None] ^ keys(seed, channel + 1000, columns)[None, :]
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h.view(np.int32).astype(np.float32) * np.float32(math.sqrt(3) / 2**31)


@dataclass(frozen=True)
class Spline:
    """Cubic B-splines through a lattice ``cell`` px apart, at ``count`` px from ``start`` on."""

    ids: NDArray[np.int64]  # of the lattice points
    left: NDArray[np.int64]  # for each px, the first of its four points, in ``ids``
    basis: Field  # ``[4, count, 1]``

    @staticmethod
    def over(start: int, count: int, cell: float) -> Spline:
        at = (start + np.arange(count)) / cell
        left = np.floor(at).astype(np.int64)
        t = at - left
        basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
        ids = np.arange(left[0] - 1, left[-1] + 3)
        # not / 6: keeps the deviation near 1
        return Spline(ids, left - left[0], (basis[..., None] / 4.1).astype(np.float32))

    def fill(self, points: Field) -> Field:
        """From lattice points, float32 ``[len(ids), n]``, to px, ``[count, n]``."""
        # Not a matrix product: BLAS would spread it over all cores, and wait for cores that a fit keeps busy.
        out = points[self.left] * self.basis[0]
        for step in (1, 2, 3):
            out += points[self.left + step] * self.basis[step]
        return out


def cloud_field(seed: int, channel: int, y0: int, x0: int, rows: int, columns: int, cell_y: float,
                cell_x: float) -> Field:
    """Smooth noise, float32 ``[rows, columns]``, deviation about 1, over px ``y0...`` and ``x0...``."""
    down, over = Spline.over(y0, rows, cell_y), Spline.over(x0, columns, cell_x)
    return down.fill(np.ascontiguousarray(over.fill(noise(seed, channel, down.ids, over.ids).T).T))


# --- The woven web ---


class Cloth:
    """A plain weave of ``size`` px, endless in y: warp threads run along y, weft threads across."""

    def __init__(self, seed: int, size: int) -> None:
        draw = np.random.default_rng([seed, 1])
        self.seed, self.size, self.half = seed, size, (size / 2, size / 2)
        self.warp_pitch, self.weft_pitch = draw.uniform(7.2, 8.6), draw.uniform(6.4, 7.8)  # px
        self.warp_tone, self.weft_tone = draw.uniform(0.60, 0.68), draw.uniform(0.50, 0.60)

    def piece(self, index: int) -> Weave:
        return self.web(index * self.size, self.size)

    def web(self, y0: int, height: int) -> Weave:
        """The web's px ``y0`` to ``y0 + height``. Overlapping windows show the same threads."""
        seed, top, rows, columns = self.seed, y0 - MARGIN, height + 2 * MARGIN, self.size + 2 * MARGIN
        y, x = np.arange(rows, dtype=np.float32)[:, None], np.arange(columns, dtype=np.float32)[None, :]
        # Absolute positions need more digits than float32 has; positions in the window do not.
        first = math.floor(top / self.weft_pitch)

        def clouds(channel: int, cell_y: float, cell_x: float) -> Field:
            return cloud_field(seed, channel, top, -MARGIN, rows, columns, cell_y, cell_x)

        place_x = (x + 1.3 * clouds(1, 150, 90) + 0.35 * clouds(2, 40, self.warp_pitch)) / self.warp_pitch
        place_y = (y + 1.6 * clouds(3, 90, 150) + 0.35 * clouds(4, self.weft_pitch, 40)) / self.weft_pitch
        place_y += top / self.weft_pitch - first
        warp = self._threads(10, place_x, 0, self.warp_pitch, self.warp_tone, top, False)
        weft = self._threads(20, place_y, first, self.weft_pitch, self.weft_tone, -MARGIN, True)
        # Plain weave: +1 where the warp thread lies over the weft thread. A thread's crimp is a wave along it.
        over = (1 - 2 * ((warp.index + weft.index) & 1)).astype(np.float32)
        warp_crown, weft_crown = over * np.cos(np.pi * weft.offset), -over * np.cos(np.pi * warp.offset)
        upper = np.clip(0.5 + 1.5 * (0.6 * (warp.profile - weft.profile) + warp_crown - weft_crown), 0, 1)
        grain = noise(seed, 30, np.arange(top, top + rows), np.arange(-MARGIN, columns - MARGIN))

        def shade(threads: Threads, crown: Field, rise: Field, fibre: Field) -> Field:
            # Light comes from the upper left: slopes that face it are brighter, across a thread and along its crimp.
            relief = 0.42 + 0.36 * threads.profile + 0.20 * crown - 0.13 * threads.side + 0.10 * rise
            return threads.tone * relief * (1 + 0.16 * fibre)

        fibres_y, fibres_x = (np.asarray(cv2.blur(grain, window), np.float32) for window in ((1, 7), (7, 1)))
        warp_shade = shade(warp, warp_crown, over * np.sin(np.pi * weft.offset), fibres_y)
        weft_shade = shade(weft, weft_crown, -over * np.sin(np.pi * warp.offset), fibres_x)
        return Weave(warp, weft, warp_shade, weft_shade, upper, grain)

    def _threads(self, channel: int, place: Field, first: int, pitch: float, tone: float, along: int,
                 weft: bool) -> Threads:
        """Threads counted from ``first`` at ``place`` (in spacings), each with a thickness and tone that vary along it.
        """
        floor = np.floor(place)
        offset, local = place - floor - 0.5, floor.astype(np.int64)
        low = int(local.min())
        threads = np.arange(low, int(local.max()) + 1) + first
        spline = Spline.over(along, place.shape[weft], 26.0)
        steps = np.arange(place.shape[weft])
        # in a table [step along it, thread]
        at = (steps[None, :] if weft else steps[:, None]) * len(threads) + (local - low)

        def vary(channel: int, steady: float, uneven: float) -> Field:
            own = noise(self.seed, channel, np.zeros(1, np.int64), threads)
            return np.take(1 + steady * own + uneven * spline.fill(noise(self.seed, channel + 1, spline.ids, threads)),
                           at)

        half = np.minimum(0.46 * vary(channel, 0.035, 0.035), 0.5)
        side = np.clip(offset / half, -1, 1)
        cover = np.clip((half - np.abs(offset)) * pitch + 0.5, 0, 1)
        return Threads(local + first, offset, np.sqrt(1 - side * side), side, cover,
                       tone * vary(channel + 2, 0.045, 0.035))


# --- Printed parts on a belt ---


class Print:
    """Plates with a fixed print of three inks on a moving belt, seen by a colour camera over ``size`` px."""

    PAPER = (0.86, 0.84, 0.79)  # RGB reflectance
    BLACK = (0.10, 0.10, 0.11)
    SPOT_COLOURS = (
        ((0.07, 0.36, 0.56), (0.83, 0.28, 0.13)),
        ((0.10, 0.38, 0.24), (0.88, 0.58, 0.10)),
        ((0.48, 0.09, 0.17), (0.26, 0.42, 0.56)),
    )

    def __init__(self, seed: int, size: int, turned: bool) -> None:
        draw = np.random.default_rng([seed, 2])
        self.seed, self.size, self.turned = seed, size, turned
        # A turned part is smaller: turned by 15 degrees and shifted by 8 % it still lies within the frame.
        self.half = (0.335 * size, 0.295 * size) if turned else (0.44 * size, 0.40 * size)
        spots = np.array(self.SPOT_COLOURS[int(draw.integers(3))]) + draw.uniform(-0.04, 0.04, (2, 1))
        self.absorbed = (1 - np.vstack([spots, self.BLACK])).astype(np.float32)
        self.artwork = self._draw_artwork(draw)

    def _draw_artwork(self, draw: np.random.Generator) -> list[NDArray[np.uint8]]:
        """Cover of the plate and of each ink, uint8 ``[2 size, 2 size]``: twice the size, smoothed for the reduction.
        """
        side, (w, h) = 2 * self.size, (2 * self.half[0], 2 * self.half[1])
        plate, spot, accent, black = layers = [np.zeros((side, side), np.uint8) for _ in range(4)]
        thin, font = max(1, round(side / 256)), cv2.FONT_HERSHEY_SIMPLEX

        def at(u: float, v: float) -> tuple[int, int]:  # plate coordinates, -1 to 1, to px
            return round(side / 2 + u * w), round(side / 2 + v * h)

        def box(layer: NDArray[np.uint8], left: float, top: float, right: float, bottom: float,
                value: int = 255) -> None:
            cv2.rectangle(layer, at(left, top), at(right, bottom), value, -1)

        radius = round(0.09 * w)
        box(plate, -1 + radius / w, -1 + radius / h, 1 - radius / w, 1 - radius / h)
        plate[:] = cv2.dilate(plate, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))
        cv2.rectangle(black, at(-0.95, -0.94), at(0.95, 0.94), 255, thin)
        box(spot, -0.92, -0.88, 0.92, -0.42)
        box(black, -0.92, -0.34, 0.92, -0.32)
        lines = ["".join(draw.choice(list("0123456789ACEFHLMPRU-/"), 12)) for _ in range(4)]
        name = "".join(draw.choice(list("ABDEHKLMNORSTVX"), 6))
        scale = 0.98 * w / cv2.getTextSize(name, font, 1.0, 1)[0][0]
        cv2.putText(spot, name, at(-0.84, -0.54), font, scale, 0, 4 * thin, cv2.LINE_AA)
        scale = 1.04 * w / max(cv2.getTextSize(line, font, 1.0, 1)[0][0] for line in lines)
        for number, line in enumerate(lines):
            cv2.putText(black, line, at(-0.90, -0.15 + 0.16 * number), font, scale, 255, thin, cv2.LINE_AA)
        for ring, value in ((0.155, 255), (0.115, 0), (0.075, 255)):
            cv2.circle(accent, at(0.66, -0.65), round(ring * w), value, -1, cv2.LINE_AA)
            cv2.circle(spot, at(0.66, -0.65), round(ring * w), 0, -1, cv2.LINE_AA)
        u = -0.90
        while u < 0.12:  # bar code
            bar = float(draw.choice([0.016, 0.032, 0.048]))
            box(black, u, 0.50, u + bar, 0.86)
            u += bar + float(draw.choice([0.018, 0.034]))
        triangle = np.array([at(0.56, -0.22), at(0.88, 0.30), at(0.24, 0.30)], np.int32)
        cv2.fillPoly(accent, [triangle], 255, cv2.LINE_AA)
        cv2.polylines(black, [triangle], True, 255, 3 * thin, cv2.LINE_AA)
        box(black, 0.545, -0.04, 0.575, 0.14)
        cv2.circle(black, at(0.56, 0.215), 3 * thin, 255, -1, cv2.LINE_AA)
        for step, tint in enumerate((255, 191, 128, 64)):  # tint wedges of both spot colours
            box(spot, 0.28 + 0.155 * step, 0.50, 0.42 + 0.155 * step, 0.67, tint)
            box(accent, 0.28 + 0.155 * step, 0.69, 0.42 + 0.155 * step, 0.86, tint)
        return [np.asarray(cv2.GaussianBlur(layer, (0, 0), 0.8), np.uint8) for layer in layers]

    def piece(self, index: int) -> Plate:
        size, top, rng = self.size, index * self.size, np.random.default_rng([self.seed, 3, index])
        angle = math.radians(rng.uniform(-15, 15) if self.turned else rng.uniform(-0.1, 0.1))
        centre = size / 2 + rng.uniform(-1, 1, 2) * (0.08 * size if self.turned else 0.4)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[cos, sin], [-sin, cos]])  # from the frame's axes to the plate's

        def lay(layer: NDArray[np.uint8], register: float) -> Field:
            """Cover of an artwork layer at this part's position, printed with a random offset of up to ``register`` px.
            """
            matrix = np.column_stack([2 * turn, size - 2 * turn @ centre + 2 * rng.uniform(-register, register, 2)])
            cover = cv2.warpAffine(layer, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            return np.asarray(cover, np.float32) * np.float32(1 / 255)

        def clouds(channel: int, cell: float) -> Field:
            return cloud_field(self.seed, channel, top, 0, size, size, cell, cell)

        plate = lay(self.artwork[0], 0)
        dx = np.arange(size, dtype=np.float32)[None, :] - float(centre[0])
        dy = np.arange(size, dtype=np.float32)[:, None] - float(centre[1])
        grain = noise(self.seed, 60, np.arange(top, top + size), np.arange(size))
        shadow = np.roll(cv2.GaussianBlur(plate, (0, 0), 3.5 * size / 256), (round(size / 85), round(size / 64)),
                         (0, 1))
        belt = (0.17 + 0.010 * clouds(50, 30) + 0.014 * cv2.blur(grain, (5, 1)) + 0.008 * grain) * (1 - 0.6 * shadow)
        press = 1 + 0.02 * clouds(51, 22)  # uneven inking
        inks = [np.minimum(lay(layer, 0.3 * size / 256) * press * rng.uniform(0.95, 1.0), 1)
                for layer in self.artwork[1:]]
        paper = [(1 + 0.008 * grain) * (tone * rng.uniform(0.99, 1.01)) for tone in self.PAPER]
        own_x, own_y = cos * dx + sin * dy, cos * dy - sin * dx
        return Plate(plate, inks, self.absorbed, paper, np.asarray(belt, np.float32), grain, own_x, own_y)

"""How a piece of a simulated surface looks, good or defective: a defect's random shape, and its effect on cloth and
print.

Coordinates ``x``, ``y`` are float32 ``[H, W]`` in px from the part's centre, so a defect shifts and turns with its
part. A *cover* is float32 ``[H, W]``, 0 (unchanged) to 1 (fully changed). A *reflectance* is float32 ``[C, H, W]``, 0
to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
MARGIN = 4  # px of cloth around the frame, for the lens's blur at the edges
NOTICEABLE = 4  # grey levels; a pixel that differs by more, without noise, counts as defective
VISIBLE = 16  # grey levels; the least mean change of a defect's pixels
AREA = (60, 4000)  # px; the least and largest area of a defect at 256 x 256

DEFECTS = {
    "woven": ("scratch", "stain", "hole", "missing_thread"),
    "printed": ("scratch", "stain", "hole", "missing_print"),
}


@dataclass(frozen=True)
class Flaw:
    """One defect: lengths in px, angles in rad, ``waves`` a row (amplitude, phase) for each harmonic of its outline."""

    name: str
    x: float
    y: float
    angle: float
    reach: float  # half of a line's length, or a patch's radius
    width: float  # a line's soft half-width, or a patch's shorter radius
    bend: float
    strength: float  # 0 to 1
    light: bool  # lighter than the surface, where the defect can be either
    across: bool  # a weft thread rather than a warp thread; a streak rather than a patch
    waves: tuple[tuple[float, float], ...]


def draw_flaw(name: str, rng: np.random.Generator, half_width: float, half_height: float, size: int) -> Flaw:
    """Draw a random defect within +-``half_width`` x +-``half_height`` px of the part's centre.

    It grows with ``size`` (px).
    """
    unit = size / 256

    def between(low: float, high: float) -> float:  # log-uniform: small defects are as frequent as large ones
        return math.exp(rng.uniform(math.log(low), math.log(high))) * unit

    angle, across = rng.uniform(0, math.pi), bool(rng.random() < 0.5)
    roughness = 0.22
    if name == "scratch":
        reach, width, strength = between(20, 65), max(between(0.9, 1.7), 0.7), rng.uniform(0.6, 0.95)
    elif name == "stain":
        reach, strength = between(8, 25), rng.uniform(0.35, 0.7)
        width = reach * rng.uniform(0.6, 1.0)
    elif name == "hole":
        reach, strength, roughness = between(5.5, 14), 1.0, 0.13
        width = reach * rng.uniform(0.7, 1.0)
    elif name == "missing_thread":
        reach, width, strength, angle = between(16, 80), 4 * unit, 1.0, (0.0 if across else math.pi / 2)
    else:  # missing_print: a streak from a blocked nozzle or a damaged plate, or a patch without contact
        reach, strength = (between(18, 50), 1.0) if across else (between(8, 20), rng.uniform(0.75, 1.0))
        width = between(2.2, 4.5) if across else reach * rng.uniform(0.5, 1.0)
        angle = (0.0 if rng.random() < 0.5 else math.pi / 2) if across else angle  # streaks follow the press
    room_x = half_width - 3 - 1.15 * math.hypot(reach * math.cos(angle), width * math.sin(angle))
    room_y = half_height - 3 - 1.15 * math.hypot(reach * math.sin(angle), width * math.cos(angle))
    return Flaw(
        name, rng.uniform(-1, 1) * max(room_x, 0), rng.uniform(-1, 1) * max(room_y, 0), angle, reach, width,
        rng.uniform(-0.3, 0.3), strength, bool(rng.random() < 0.5), across,
        tuple((rng.normal() * roughness / (n + 1), rng.uniform(0, 2 * math.pi)) for n in range(1, 7)),
    )


def _ramp(field: NDArray[np.floating]) -> Field:
    """Smooth step: 0 below 0, 1 above 1."""
    t = np.clip(field, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _along_across(flaw: Flaw, x: Field, y: Field) -> tuple[Field, Field]:
    """Coordinates (px) along and across a defect's axis, from its centre."""
    dx, dy, c, s = x - flaw.x, y - flaw.y, math.cos(flaw.angle), math.sin(flaw.angle)
    return dx * c + dy * s, dy * c - dx * s


def depth_inside(flaw: Flaw, x: Field, y: Field) -> Field:
    """Distance (px, float32 ``[H, W]``) inside a patch's irregular outline: positive inside, negative outside."""
    along, across = _along_across(flaw, x, y)
    across = across * (flaw.reach / flaw.width)
    radius, theta = np.hypot(along, across), np.arctan2(across, along)
    outline = np.full_like(radius, flaw.reach)
    for order, (amplitude, phase) in enumerate(flaw.waves, 2):
        outline += flaw.reach * amplitude * np.cos(order * theta + phase)
    # Squeezed coordinates stretch distances across the axis; the mean of both radii is near enough for soft edges.
    return np.asarray((outline - radius) * (0.5 + 0.5 * flaw.width / flaw.reach), np.float32)


def scratch_cover(flaw: Flaw, x: Field, y: Field) -> Field:
    """A thin curved line with a Gaussian cross-profile and uneven pressure, tapering at both ends."""
    along, across = _along_across(flaw, x, y)
    t = along / flaw.reach
    path = flaw.bend * flaw.reach * (t * t - 0.33)
    pressure = np.ones_like(t)
    for order, (amplitude, phase) in enumerate(flaw.waves, 2):
        path += 0.1 * flaw.reach * amplitude / order * np.sin(1.7 * order * t + phase)
        pressure += amplitude * np.cos(4 * order * t + 2 * phase)
    slope = 2 * flaw.bend * t  # of the curve, so that the line is as thin where it runs aslant
    distance = (across - path) / (flaw.width * np.sqrt(1 + slope * slope))
    return np.asarray(np.exp(-distance * distance) * _ramp((1 - np.abs(t)) * 4) * np.clip(pressure, 0.55, 1),
                      np.float32)


def stain_cover(flaw: Flaw, x: Field, y: Field) -> Field:
    """A smooth irregular patch, densest in a ring inside its edge, as a dried drop leaves it."""
    depth = depth_inside(flaw, x, y) / flaw.reach
    ring = np.exp(-((depth - 0.22) / 0.14) ** 2)
    return _ramp(depth * 4 + 0.3) * (0.78 + 0.22 * ring)


def streak_or_patch(flaw: Flaw, x: Field, y: Field) -> Field:
    """Where ink did not reach the paper: a straight streak, or a patch with a ragged edge."""
    if not flaw.across:
        return flaw.strength * _ramp(depth_inside(flaw, x, y) / 1.6 + 0.5)
    along, across = _along_across(flaw, x, y)
    return _ramp((flaw.width - np.abs(across)) / 1.2 + 0.5) * _ramp((flaw.reach - np.abs(along)) / 3 + 0.5)


def thread_cover(flaw: Flaw, x: Field, y: Field) -> Field:
    """The gap along a missing thread; the caller limits it to that thread."""
    along, _ = _along_across(flaw, x, y)
    return _ramp((flaw.reach - np.abs(along)) / 2 + 0.5)


def paint(flaw: Flaw, reflectance: Field, x: Field, y: Field, hold: Field) -> Field:
    """The reflectance with a scratch or a stain.

    ``hold`` (a cover): how much of it the surface takes; 0 outside the part.
    """
    if flaw.name == "scratch":
        cover = flaw.strength * hold * scratch_cover(flaw, x, y)
        # With contrast: a light line on dark, a dark line on light, either on mid grey.
        under = float((cover * reflectance).sum() / max(float(cover.sum()) * len(reflectance), 1e-6))
        light = flaw.light if 0.3 < under < 0.55 else under <= 0.3
        return reflectance + cover * ((0.95 if light else 0.06) - reflectance)
    cover = flaw.strength * hold * stain_cover(flaw, x, y)
    if flaw.light:  # a washed-out or powdery spot: the surface shows through
        return reflectance + cover * (0.60 - 0.50 * reflectance)
    tint = np.array([0.42, 0.32, 0.18] if len(reflectance) == 3 else [0.12], np.float32)  # brown, as oil and rust are
    return reflectance * (1 - cover * (1 - tint[:, None, None]))


@dataclass(frozen=True)
class Threads:
    """One thread system as each pixel sees it: float32 ``[H, W]``, but for ``index``."""

    index: NDArray[np.int64]  # of the thread in the web
    offset: Field  # from the thread's centre, in thread spacings, -0.5 to 0.5
    profile: Field  # height of the round cross-section, 0 to 1
    side: Field  # place across the thread, -1 to 1
    cover: Field
    tone: Field


@dataclass(frozen=True)
class Weave:
    """A piece of web with ``MARGIN`` px around it; all arrays are float32 ``[H, W]``."""

    warp: Threads
    weft: Threads
    warp_shade: Field
    weft_shade: Field
    upper: Field  # 1 where the warp thread lies on top, 0 where the weft thread does
    grain: Field

    def reflectance(self, flaw: Flaw | None) -> Field:
        """Float32 ``[1, H, W]`` without the margin, 0 to 1. A flaw's position is relative to the centre."""
        warp_cover, weft_cover = self.warp.cover, self.weft.cover
        ground = np.full((1, 1), 0.10, np.float32)
        warp_shade, weft_shade = self.warp_shade, self.weft_shade
        rows, columns = self.grain.shape
        x = np.arange(columns, dtype=np.float32)[None, :] - columns / 2
        y = np.arange(rows, dtype=np.float32)[:, None] - rows / 2
        if flaw is not None and flaw.name == "missing_thread":
            index = (self.weft if flaw.across else self.warp).index
            gone = (index == index[int(flaw.y + rows / 2), int(flaw.x + columns / 2)]) * thread_cover(flaw, x, y)
            # The threads that cross the gap lose their support: they lie deeper, in the shade of their neighbours.
            if flaw.across:
                weft_cover, warp_shade = weft_cover * (1 - gone), warp_shade * (1 - 0.4 * gone)
            else:
                warp_cover, weft_shade = warp_cover * (1 - gone), weft_shade * (1 - 0.4 * gone)
        elif flaw is not None and flaw.name == "hole":
            depth = depth_inside(flaw, x, y) + 0.4 * self.grain
            # Each thread tears at its weakest point, so the edge is ragged; the torn ends stand up and catch light.
            tear = np.random.default_rng(int(1000 * flaw.reach)).normal(0, 1.1, (2, 64)).astype(np.float32)
            warp_cover = warp_cover * np.clip(0.5 - depth - np.take(tear[0], self.warp.index & 63), 0, 1)
            weft_cover = weft_cover * np.clip(0.5 - depth - np.take(tear[1], self.weft.index & 63), 0, 1)
            rim = np.asarray(1 + 0.35 * np.exp(-(((depth + 1.2) / 1.3) ** 2)), np.float32)
            warp_shade, weft_shade = warp_shade * rim, weft_shade * rim
            ground = np.asarray(0.10 - 0.06 * np.clip(depth + 0.5, 0, 1), np.float32)
        image = warp_shade * warp_cover * (1 - weft_cover * (1 - self.upper))
        image += weft_shade * weft_cover * (1 - warp_cover * self.upper)
        image += ground * (1 - warp_cover) * (1 - weft_cover)
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.55), dtype=np.float32)  # the lens
        inner = slice(MARGIN, -MARGIN)
        image = image[None, inner, inner]
        if flaw is not None and flaw.name in ("scratch", "stain"):
            # A scratch changes the crowns of the threads and skips the valleys; a stain soaks in everywhere.
            hold = np.clip((image[0] - 0.15) / 0.4, 0.2, 1) if flaw.name == "scratch" else np.ones_like(image[0])
            image = paint(flaw, image, x[:, inner], y[inner], hold)
        return np.clip(image, 0, 1)


@dataclass(frozen=True)
class Plate:
    """A printed part on the belt; all arrays are float32 ``[H, W]``."""

    plate: Field  # cover
    inks: list[Field]  # density of each ink, 0 to 1
    absorbed: Field  # ``[ink, RGB]``
    paper: list[Field]  # reflectance of each channel
    belt: Field
    grain: Field
    x: Field  # px from the plate's centre along its own axes
    y: Field

    def reflectance(self, flaw: Flaw | None) -> Field:
        """Float32 ``[3, H, W]``, 0 to 1."""
        inks, plate, belt, image = self.inks, self.plate, self.belt, np.stack(self.paper)
        if flaw is not None and flaw.name == "missing_print":
            kept = 1 - streak_or_patch(flaw, self.x, self.y)
            inks = [ink * kept for ink in inks]
        for channel, plane in enumerate(image):
            for ink, absorbed in zip(inks, self.absorbed, strict=True):
                plane *= 1 - ink * absorbed[channel]
        if flaw is not None and flaw.name in ("scratch", "stain"):
            image = paint(flaw, image, self.x, self.y, plate)
        elif flaw is not None and flaw.name == "hole":
            depth = depth_inside(flaw, self.x, self.y) + 0.25 * self.grain
            image += 0.7 * np.clip(1.3 - np.abs(depth + 0.8), 0, 1) * (0.84 - image)  # torn paper fibre without ink
            plate = plate * np.clip(0.5 - depth, 0, 1)
        return belt + plate * (image - belt)


def changed_pixels(good: Field, bad: Field) -> NDArray[np.bool_]:
    """Where a defect shows: bool ``[H, W]``, from two noise-free frames ``[C, H, W]`` in grey levels."""
    return np.asarray(np.abs(bad - good).max(axis=0) > NOTICEABLE)


def is_visible(good: Field, bad: Field, changed: NDArray[np.bool_]) -> bool:
    """Whether an attentive eye would find the defect: neither too faint, nor too small, nor so large that it is a new
    surface.
    """
    unit, area = changed.shape[0] / 256, int(changed.sum())
    # Lines grow with the size, patches with its square.
    return AREA[0] * unit <= area <= AREA[1] * unit**2 and float(np.abs(bad - good)[:, changed].mean()) >= VISIBLE

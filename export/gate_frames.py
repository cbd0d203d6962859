"""The frames of a gate: views of good parts, and painted defects that no fit uses, at a ladder of contrasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError
from edge.bundle.bundle import Bundle
from edge.images.files import read_image
from edge.images.frames import Frame, prepare_frame
from simulation.render.defects import changed_pixels, draw_flaw, paint

LADDER = tuple(float(c) for c in np.geomspace(0.04, 1.0, 10))  # shares of a defect's full strength
DEFECTIVE = 0.4  # share of all frames; most parts on a line are good
SHIFT = 3  # px by which a view is shifted, at most
LIGHT = 0.03  # by which a view is brighter or darker, at most
DRAWS = 50  # attempts to place a defect in the region of interest
MOST_BYTES = 3_000_000_000  # of a gate's frames; the search's frames need as much again
NOISE = 1.5  # grey levels of added noise (standard deviation), at most


@dataclass(frozen=True)
class GateFrame:
    """A frame as the network sees it, and its truth."""

    image: NDArray[np.uint8]  # [H, W, C], the network's input
    frame_size: tuple[int, int]  # height, width of the camera's frame
    source: str
    defect: int | None  # number of the defect, the same at every contrast; None for a good part
    contrast: float
    mask: NDArray[np.bool_] | None  # [h, w] of the map; only at full contrast


def view(frame: Frame, rng: np.random.Generator) -> Frame:
    """The same part a moment later: slightly shifted, in slightly different light, with different noise."""
    height, width = frame.shape[:2]
    dx, dy = rng.integers(-SHIFT, SHIFT + 1, 2)
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    moved = cv2.warpAffine(frame, move, (width, height), borderMode=cv2.BORDER_REFLECT_101).reshape(frame.shape)
    lit = moved.astype(np.float32) * np.float32(rng.uniform(1 - LIGHT, 1 + LIGHT))
    lit += rng.standard_normal(lit.shape, dtype=np.float32) * np.float32(rng.uniform(0, NOISE))
    return np.asarray(np.rint(np.clip(lit, 0, 255)), np.uint8)


def flawed(frame: Frame, rng: np.random.Generator) -> NDArray[np.float32]:
    """A frame with a scratch or a stain at full strength, float32 ``[H, W, C]`` in 0..255, painted by the renderer."""
    height, width = frame.shape[:2]
    name = "scratch" if rng.random() < 0.5 else "stain"
    flaw = draw_flaw(name, rng, 0.45 * width, 0.45 * height, min(height, width))
    x = np.arange(width, dtype=np.float32)[None, :] - width / 2
    y = np.arange(height, dtype=np.float32)[:, None] - height / 2
    reflectance = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32) / np.float32(255)
    painted = paint(flaw, np.asarray(reflectance, np.float32), x, y, np.ones((height, width), np.float32))
    return np.asarray(np.clip(painted, 0, 1).transpose(1, 2, 0) * 255, np.float32)


def make_frames(bundle: Bundle, paths: Sequence[Path], count: int, seed: int,
                progress: Callable[[int, int], None] = lambda *_: None) -> list[GateFrame]:
    """At least ``count`` frames, or tiles, from good images that were not fitted on; the same seed gives the same
    frames.

    Defects lie in the region of interest. Raises InputError if none can be placed there, or if the frames would not fit
    into memory.
    """
    rng = np.random.default_rng(seed)
    card = bundle.card
    size = (card.input.height, card.input.width, card.input.channels)
    if count * int(np.prod(size)) > MOST_BYTES:
        raise InputError("the gate's frames do not fit into memory", got=f"{count} of {size[1]}x{size[0]} px",
                         expected=f"at most {MOST_BYTES // int(np.prod(size))}", next="Run again with fewer --frames.")
    good = []
    for path in paths:
        frame = read_image(path)
        good += [(path.name, view if card.frames.colour else view[..., :1]) for view in bundle.views(frame)]
    if bundle.decision.tile is not None:
        good = [good[i] for i in rng.permutation(len(good))]

    def prepared(frame: Frame) -> NDArray[np.uint8]:
        image = np.empty(size, np.uint8)
        prepare_frame(np.ascontiguousarray(frame), image)
        return image

    frames: list[GateFrame] = []
    defects = -(-int(DEFECTIVE * count) // len(LADDER))
    for number in range(count - defects * len(LADDER)):
        name, frame = good[number % len(good)]
        frames.append(GateFrame(prepared(view(frame, rng)), (frame.shape[0], frame.shape[1]), name, None, 0.0, None))
        progress(len(frames), count)
    for number in range(defects):
        name, frame = good[number % len(good)]
        frame_size = (frame.shape[0], frame.shape[1])
        region = bundle.view_rule(frame_size).region
        part = view(frame, rng)
        most = 0.0
        for _ in range(DRAWS):
            drawn = flawed(part, rng)
            changed = _where(part, drawn, (card.map.height, card.map.width))
            share = float((changed & region).sum() / max(1, changed.sum()))
            if share > most:
                most, bad, mask = share, drawn, changed
            if most >= 0.8:
                break
        if not most:
            raise InputError("no painted defect can be placed in the region of interest",
                             got=f"{int(region.sum())} of {region.size} pixels of the map",
                             expected=f"a region that one of {DRAWS} scratches and stains touches",
                             next="Widen roi or polygon in decision.toml, then run `lineside calibrate` and `lineside "
                             "quantize` again.")
        difference = bad - part
        for contrast in LADDER:
            image = prepared(np.asarray(np.rint(np.clip(part + np.float32(contrast) * difference, 0, 255)), np.uint8))
            frames.append(GateFrame(image, frame_size, name, number, contrast, mask if contrast == LADDER[-1]
                                    else None))
        progress(min(len(frames), count), count)
    return frames


def _where(good: Frame, bad: NDArray[np.float32], map_size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of the map (height, width) that a defect changes by at least half, or those it touches most if there
    are none.
    """
    changed = changed_pixels(np.asarray(good.transpose(2, 0, 1), np.float32), bad.transpose(2, 0, 1))
    share = cv2.resize(changed.astype(np.float32), (map_size[1], map_size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray((share > 0) & (share >= min(0.5, float(share.max()))))

"""From an anomaly map to a score, blobs and a verdict.

The rule, as a user reads it: filter the map, threshold it, clean it by morphology, restrict it to the region of
interest, and reject the part if a blob of at least the minimum area is left. The *score* is the largest threshold at
which this whole rule rejects, so that ``score > threshold`` and REJECT are the same statement. It is computed without a
threshold: rank filters (median) and flat morphology commute with thresholding, so they can be applied to grey levels,
and an area opening replaces the minimum area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import EngineError, InputError
from edge.images.maps import MapArray, MapPool

MORPHOLOGY = {"open": cv2.MORPH_OPEN, "close": cv2.MORPH_CLOSE, "erode": cv2.MORPH_ERODE, "dilate": cv2.MORPH_DILATE}
MANY = 1000  # with this many components, OpenCV's statistics of all are faster than looking at each
STEP_HELP = "'threshold', 'mean:K', 'median:3', 'median:5', or 'open:K', 'close:K', 'erode:K', 'dilate:K' with K odd"


@dataclass(frozen=True)
class Blob:
    """A connected defective area. Box ``(x, y, width, height)`` and area in px of the camera frame; mm2 if the scale is
    known.
    """

    box: tuple[int, int, int, int]
    area_px: float
    area_mm2: float | None
    peak: float


@lru_cache
def parse_step(text: str) -> tuple[str, int]:
    """A post-filter step such as ``"median:5"`` as (name, kernel side in map px). Raises ValueError for anything
    else.
    """
    name, _, size = text.partition(":")
    if text == "threshold":
        return name, 0
    if not size.isascii() or not size.isdigit() or not 3 <= int(size) <= 101 or int(size) % 2 == 0:
        raise ValueError(f"one of {STEP_HELP}")
    if name in MORPHOLOGY or name == "mean" or (name == "median" and size in ("3", "5")):
        return name, int(size)
    raise ValueError(f"one of {STEP_HELP}")


def check_post_filter(steps: Sequence[str]) -> None:
    """Raise ValueError unless all steps are valid, with ``threshold`` exactly once and no mean after it."""
    names = [parse_step(step)[0] for step in steps]
    if names.count("threshold") != 1:
        raise ValueError("'threshold' exactly once among the steps")
    if "mean" in names[names.index("threshold"):]:
        raise ValueError("no 'mean' after 'threshold': a mean of black and white needs a second threshold")


def smooth(anomaly_map: MapArray, steps: Sequence[str], pool: MapPool | None = None) -> MapArray:
    """Apply the post-filter to the grey levels of a float32 map ``[H, W]``; the step ``threshold`` changes nothing
    here.

    pool: where the result's arrays come from; new ones if None.
    """
    result = anomaly_map
    for name, size in map(parse_step, steps):
        if name == "threshold":
            continue
        out = None if pool is None else pool.take(result.shape)
        if name == "mean":
            result = cv2.blur(result, (size, size), out)  # type: ignore[assignment]
        elif name == "median":
            result = cv2.medianBlur(result, size, out)  # type: ignore[assignment]
        else:
            kernel = np.ones((size, size), np.uint8)
            result = cv2.morphologyEx(result, MORPHOLOGY[name], kernel, out)  # type: ignore[assignment]
    return result


def largest_component(mask: NDArray[np.bool_]) -> int:
    """The area (px) of the largest 8-connected component of a boolean mask ``[H, W]``."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return int(stats[1:, cv2.CC_STAT_AREA].max(initial=0))


def components(mask: NDArray[np.bool_]) -> Iterator[tuple[tuple[int, int, int, int], NDArray[np.bool_]]]:
    """The 8-connected components of a boolean mask ``[H, W]``: box (x, y, width, height), and the component's pixels in
    it.

    Finds outlines first, then labels each component in its box: on the maps of large frames this is many times faster
    than OpenCV's statistics of the whole mask.
    """
    outlines, levels = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return
    # without the outlines of holes
    outer = [outline for outline, level in zip(outlines, levels[0], strict=True) if level[3] < 0]
    boxes = [cv2.boundingRect(outline) for outline in outer]
    if len(boxes) < MANY and sum(width * height for _, _, width, height in boxes) <= mask.size:
        for outline, (x, y, width, height) in zip(outer, boxes, strict=True):
            labels = cv2.connectedComponents(mask[y:y + height, x:x + width].view(np.uint8), connectivity=8)[1]
            yield (x, y, width, height), labels == labels[outline[0, 0, 1] - y, outline[0, 0, 0] - x]
        return
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    for number, (x, y, width, height, _) in enumerate(stats[1:].tolist(), 1):
        yield (x, y, width, height), labels[y:y + height, x:x + width] == number


def area_opening_maximum(values: MapArray, region: NDArray[np.bool_], min_area: int) -> float:
    """The largest v such that ``values >= v`` inside ``region`` has an 8-connected component of at least ``min_area``
    px.

    Components only grow as v falls, so v is found by bisection over the values that occur. Two bounds narrow it down:
    a square block of that area is a component, and fewer pixels than the area are not. Most maps have few values
    between the two.
    """
    highest = float(cv2.minMaxLoc(values, region.view(np.uint8))[1])
    if min_area <= 1:
        return highest
    inside = np.where(region, values, -np.inf).astype(np.float32)
    side = int(np.ceil(np.sqrt(min_area)))
    blocks = cv2.erode(inside, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=-np.inf)
    candidates = inside >= max(float(blocks.max()), float(np.finfo(np.float32).min))
    x, y, width, height = cv2.boundingRect(candidates.view(np.uint8))
    inside, candidates = inside[y:y + height, x:x + width], candidates[y:y + height, x:x + width]
    levels = np.unique(inside[candidates])
    low, high = 0, int(np.searchsorted(levels, np.partition(inside[candidates], -min_area)[-min_area]))
    while low < high:
        middle = (low + high + 1) // 2
        if largest_component(inside >= levels[middle]) >= min_area:
            low = middle
        else:
            high = middle - 1
    return float(levels[low])


class Rule:
    """The decision rule for one size of frame and map."""

    def __init__(
        self, post_filter: Sequence[str], *, map_size: tuple[int, int], frame_size: tuple[int, int],
        min_area_px: float = 1,
        roi: Sequence[int] | None = None, ignore: NDArray[np.bool_] | None = None, mm_per_px: float | None = None,
    ) -> None:
        """map_size, frame_size: (height, width). roi (x, y, width, height) and min_area_px: in px of the frame.

        ignore: bool ``[frame height, frame width]``, True where nothing is inspected. Raises InputError if roi or mask
        do not fit the frame, or if roi, mask and minimum area leave nothing that could be rejected.
        """
        self.post_filter = tuple(post_filter)
        self.mm_per_px = mm_per_px
        height, width = frame_size
        self._scale = (width / map_size[1], height / map_size[0])
        self.min_area = max(1, int(np.ceil(min_area_px / (self._scale[0] * self._scale[1]) - 1e-9)))
        inspected = np.ones((height, width), np.uint8)
        if roi is not None:
            x, y, w, h = roi
            if x + w > width or y + h > height:
                raise InputError("the region of interest lies outside the frame",
                                 got=f"{list(roi)} in a frame of {width}x{height} px",
                                 expected="x + width and y + height inside it", next="Correct `roi` in decision.toml.")
            inspected[:] = 0
            inspected[y:y + h, x:x + w] = 1
        if ignore is not None:
            if ignore.shape != (height, width):
                raise InputError("the ignore mask does not fit the frame",
                                 got=f"{ignore.shape[1]}x{ignore.shape[0]} px", expected=f"{width}x{height} px",
                                 next="Draw it on a frame of this camera.")
            inspected[ignore] = 0
        share = cv2.resize(inspected.astype(np.float32), (map_size[1], map_size[0]), interpolation=cv2.INTER_AREA)
        self.region: NDArray[np.bool_] = share > 0.5
        if largest_component(self.region) < self.min_area:
            raise InputError("region of interest, ignore mask and minimum area leave nothing that could be rejected",
                             got=f"{int(self.region.sum())} px of the map to inspect and a minimum area of "
                             f"{self.min_area} px of the map", expected="a region larger than the minimum area",
                             next="Correct decision.toml.")

    def grey(self, anomaly_map: MapArray, pool: MapPool | None = None) -> MapArray:
        """The post-filtered map ``[H, W]``, in an array of ``pool``. Raises EngineError if the map has NaN or infinite
        values.
        """
        if not np.isfinite(cv2.sumElems(anomaly_map)[0]):  # summed in double precision: finite values cannot overflow
            raise EngineError("the engine returned a map that is not finite", got="NaN or infinity",
                              expected="finite numbers")
        return smooth(anomaly_map, self.post_filter, pool)

    def score(self, grey: MapArray) -> float:
        """The score of a post-filtered map: the rule rejects at every threshold below it."""
        return area_opening_maximum(grey, self.region, self.min_area)

    def blobs(self, grey: MapArray, threshold: float) -> tuple[list[Blob], NDArray[np.bool_]]:
        """The blobs at a threshold, largest first, and their pixels as bool ``[H, W]`` of the map."""
        level = np.float32(threshold)
        if float(level) > threshold:  # it was rounded up; a value in between must count as above
            level = np.nextafter(level, np.float32(-np.inf))
        defective = (grey > level) & self.region
        at_x, at_y, width, height = cv2.boundingRect(defective.view(np.uint8))
        above, grey = defective[at_y:at_y + height, at_x:at_x + width], grey[at_y:at_y + height, at_x:at_x + width]
        if not width:
            return [], defective
        scale_x, scale_y = self._scale
        blobs = []
        for (x, y, w, h), pixels in components(above):
            area = np.count_nonzero(pixels)
            if area < self.min_area:
                above[y:y + h, x:x + w][pixels] = False
                continue
            peak = float(grey[y:y + h, x:x + w][pixels].max())
            x, y = x + at_x, y + at_y
            left, top = int(np.floor(x * scale_x)), int(np.floor(y * scale_y))
            right, bottom = int(np.ceil((x + w) * scale_x - 1e-9)), int(np.ceil((y + h) * scale_y - 1e-9))
            area_px = area * scale_x * scale_y
            area_mm2 = None if self.mm_per_px is None else round(area_px * self.mm_per_px**2, 4)
            blobs.append(Blob((left, top, right - left, bottom - top), round(area_px, 2), area_mm2, peak))
        return sorted(blobs, key=lambda blob: (-blob.area_px, blob.box[1], blob.box[0])), defective

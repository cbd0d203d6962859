"""The gate: how a precision's decisions differ from float32's, on frames of this product, without any labelled
defect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.metrics import pixel_figures, smoothing
from edge.base.errors import InputError
from edge.bundle.bundle import Bundle
from edge.bundle.rule import Rule, smooth
from edge.images.maps import MapArray
from export.gate_frames import LADDER, GateFrame

Map = Callable[[NDArray[np.uint8]], MapArray]
GOOD_MAPS, FAINT_MAPS = 60, 40  # frames whose maps are compared, in addition to all defects at full contrast


@dataclass(frozen=True)
class Limits:
    """What a precision may change: the share of flipped decisions, the contrast at which defects are found, two
    figures.
    """

    flips: float = 0.005
    contrast: float = 0.05
    auroc: float = 0.003
    aupro: float = 0.005


LIMITS = {"bf16": Limits(), "fp16": Limits(flips=0.001, auroc=0.001, aupro=0.001), "int8": Limits()}


def parse_limits(text: str | None) -> dict[str, Limits]:
    """The limits of each precision, with those given as ``flips=0.01,contrast=0.1`` replaced. Raises InputError."""
    changes: dict[str, float] = {}
    for part in (text or "").split(",") if text else []:
        name, _, value = part.strip().partition("=")
        try:
            changes[name] = float(value)
        except ValueError:
            changes[name] = -1.0
        if name not in Limits.__dataclass_fields__ or not 0 <= changes[name] <= 1:
            raise InputError("--limits is invalid", got=part, next="For example: --limits flips=0.002,contrast=0.1",
                             expected="some of " + ", ".join(f"{known}=SHARE" for known in Limits.__dataclass_fields__)
                             + ", from 0 to 1")
    return {name: replace(limits, **changes) for name, limits in LIMITS.items()}


@dataclass
class Measured:
    """A precision on the gate's frames: all scores, some maps, and the good parts' scores that its threshold comes
    from.
    """

    scores: NDArray[np.float64]
    maps: dict[int, MapArray]
    good_scores: list[float]
    threshold: float


@dataclass(frozen=True)
class Findings:
    """What a precision changes compared with float32. Map differences are shares of float32's range."""

    passed: bool
    reasons: list[str]
    threshold: float
    largest_difference: float
    mean_difference: float
    flips: list[int]  # frames
    decisions: int
    contrast_50: float | None  # at which half of the defects are found; None if not even at full contrast
    contrast_90: float | None
    pixel_auroc: float
    aupro: float
    found: list[float] = field(default_factory=list)  # share of defects found at each contrast of the ladder

    def as_json(self) -> dict[str, Any]:
        """Flat, with the number of flips and their share."""
        return {**vars(self), "flips": len(self.flips), "flip_share": len(self.flips) / self.decisions}


class Gate:
    """Frames, their rules, and the float32 reference that precisions are compared with."""

    def __init__(self, bundle: Bundle, frames: Sequence[GateFrame],
                 good: Sequence[tuple[NDArray[np.uint8], tuple[int, int]]], k: int, reference: Map,
                 progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """good: for each good part the network's inputs, uint8 ``[N, H, W, C]``, and its frame's (height, width).

        The threshold is the ``k``-th smallest score of the good parts; a part in tiles has the score of its worst tile.
        """
        self.bundle, self.frames, self.good, self.k = bundle, frames, good, k
        self._rules: dict[tuple[int, int], Rule] = {}
        self.full = [i for i, frame in enumerate(frames) if frame.mask is not None]
        whole = [i for i, frame in enumerate(frames) if frame.defect is None][:GOOD_MAPS]
        faint = [i for i, frame in enumerate(frames) if frame.defect is not None and frame.mask is None]
        self.looked_at = sorted({*self.full, *whole, *faint[:: max(1, len(faint) // FAINT_MAPS)]})
        self._order = list(range(len(frames)))
        measured = self.measure(reference, progress=progress)
        assert measured is not None
        self.reference = measured
        self._reference_pixel = self._pixel(measured)
        # near the threshold first: a precision that cannot pass fails early
        self._order.sort(key=lambda i: abs(measured.scores[i] - measured.threshold))

    def rule(self, frame_size: tuple[int, int]) -> Rule:
        """The rule for frames of that size, made once."""
        if frame_size not in self._rules:
            self._rules[frame_size] = self.bundle.view_rule(frame_size)
        return self._rules[frame_size]

    def _score(self, raw: MapArray, frame_size: tuple[int, int]) -> float:
        rule = self.rule(frame_size)
        return rule.score(rule.grey(raw))

    def measure(self, run: Map, most_flips: int | None = None,
                progress: Callable[[int, int], None] = lambda *_: None) -> Measured | None:
        """Run a precision on all frames. Returns None as soon as it has flipped more than ``most_flips`` decisions, if
        given.

        Raises EngineError for a map with NaN or infinite values.
        """
        good_scores = sorted(max(self._score(run(image), size) for image in images) for images, size in self.good)
        measured = Measured(np.zeros(len(self.frames)), {}, good_scores, good_scores[self.k - 1])
        flips, kept = 0, set(self.looked_at)
        for done, i in enumerate(self._order, 1):
            frame = self.frames[i]
            raw = run(frame.image)
            score = self._score(raw, frame.frame_size)
            measured.scores[i] = score
            if i in kept:
                measured.maps[i] = raw
            if most_flips is not None:
                there = self.reference.scores[i] > self.reference.threshold
                flips += (score > measured.threshold) != there
                if flips > most_flips:
                    return None
            progress(done, len(self.frames))
        return measured

    def compare(self, measured: Measured, limits: Limits) -> Findings:
        """What ``measured`` changes compared with the reference, and whether that is within the limits."""
        reference = self.reference
        span = max(float(np.ptp(np.stack(list(reference.maps.values())))), 1e-12)
        differences = [np.abs(measured.maps[i] - reference.maps[i]) / span for i in self.looked_at]
        there, here = reference.scores > reference.threshold, measured.scores > measured.threshold
        flips = [int(i) for i in np.flatnonzero(there != here)]
        before, after = self.curve(reference), self.curve(measured)
        old, new = self._reference_pixel, self._pixel(measured)
        reasons = []
        if len(flips) > limits.flips * len(self.frames):
            reasons.append(f"{len(flips)} of {len(self.frames)} decisions flip, at most {limits.flips:.2%} may")
        for share in (0.5, 0.9):
            first, second = contrast_at(before, share), contrast_at(after, share)
            if first is not None and (second is None or second > first * (1 + limits.contrast)):
                reasons.append(f"{share:.0%} of defects are found at contrast "
                               f"{'none' if second is None else f'{second:.3f}'} instead of {first:.3f}, at most "
                               f"{limits.contrast:.0%} more is allowed")
        for name, lost, most in (("pixel AUROC", old[0] - new[0], limits.auroc), ("AUPRO", old[1] - new[1],
                                                                                  limits.aupro)):
            if lost > most:
                reasons.append(f"{name} falls by {lost:.4f}, at most {most:g} is allowed")
        return Findings(not reasons, reasons, measured.threshold, float(max(d.max() for d in differences)),
                        float(np.mean([d.mean() for d in differences])), flips, len(self.frames),
                        contrast_at(after, 0.5), contrast_at(after, 0.9), *new, after)

    def curve(self, measured: Measured) -> list[float]:
        """The share of defects found at each contrast of the ladder."""
        found = measured.scores > measured.threshold
        return [float(np.mean([found[i] for i, frame in enumerate(self.frames) if frame.defect is not None
                               and frame.contrast == c])) for c in LADDER]

    def _pixel(self, measured: Measured) -> tuple[float, float]:
        steps = smoothing(self.bundle.decision.post_filter)
        chosen = [i for i in self.looked_at if self.frames[i].mask is not None or self.frames[i].defect is None]
        maps, masks = [], []
        for i in chosen:
            region, mask = self.rule(self.frames[i].frame_size).region, self.frames[i].mask
            values = smooth(measured.maps[i], steps)
            # only the region of interest counts
            maps.append(np.asarray(np.where(region, values, values.min()), np.float32))
            masks.append(np.zeros(region.shape, bool) if mask is None else mask & region)
        auroc, aupro, _ = pixel_figures(maps, masks)
        return auroc, aupro


def contrast_at(found: Sequence[float], share: float) -> float | None:
    """The contrast at which ``share`` of the defects are found, interpolated on a logarithmic scale; None if never."""
    rising = np.maximum.accumulate(np.asarray(found))
    if rising[-1] < share:
        return None
    i = int(np.argmax(rising >= share))
    if i == 0:
        return LADDER[0]
    low, high = float(rising[i - 1]), float(rising[i])
    return float(np.exp(np.interp(share, [low, high], np.log([LADDER[i - 1], LADDER[i]]))))


def saturating(limits: Mapping[str, NDArray[np.float32] | float],
               values: Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]],
               good: Sequence[NDArray[np.uint8]], bad: Sequence[NDArray[np.uint8]],
               share: float = 1e-3) -> dict[str, float]:
    """The activations with more than ``share`` of their values outside their range on a defective frame, but not on
    good ones. Returns the share clipped on the worst defective frame, by name.

    limits: the largest absolute value of each activation, or of its channels; values: an image's activations by name.
    """
    def beyond(images: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
        most = dict.fromkeys(limits, 0.0)
        for image in images:
            for name, array in values(image).items():
                most[name] = max(most[name], float(np.mean(np.abs(array) > limits[name])))
        return most

    on_good, on_bad = beyond(good), beyond(bad)
    return {name: on_bad[name] for name in sorted(limits, key=lambda name: -on_bad[name])
            if on_bad[name] > max(share, 2 * on_good[name])}


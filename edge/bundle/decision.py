"""``decision.toml``: the rule and the thresholds that turn a network's map into a verdict.

Each threshold carries the guarantee that it was calibrated for, and a seal: a hash over everything that it depends on.
After a change to the rule by hand, the seal no longer matches and the bundle gives no verdict until it is calibrated
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import tomlkit
from pydantic import AfterValidator, Field, field_validator, model_validator

from edge.base.errors import BundleError
from edge.base.files import write_text_safely
from edge.base.settings import Settings, read_toml, validate
from edge.bundle.rule import Rule, check_post_filter
from edge.engines.backends import check_backend_name
from edge.engines.engine import Precision
from edge.images.files import read_image

OVERLAP = 8  # the tiles of a new bundle overlap by one eighth of their side
Pixels = Annotated[int, Field(ge=0)]

COMMENTS = {
    "post_filter": "In this order, on the map: mean:K, median:3, median:5, threshold, then open:K, close:K, erode:K, "
    "dilate:K.",
    "min_area_px": "Smaller blobs are not defects. In px of the camera frame.",
    "tile": "For frames larger than the network was fitted on: width and height of a tile, in px of the camera frame.",
    "overlap": "Least overlap of neighbouring tiles, in px of the camera frame.",
    "mm_per_px": "Scale of the camera frame; needed for areas in mm2.",
    "roi": "Region of interest: x, y, width, height in px of the camera frame.",
    "ignore_mask": "Image beside this file, as large as the camera frame: pixels that are not black are not inspected.",
}


class Threshold(Settings):
    """A threshold for one precision and backend, with its guarantee."""

    precision: Precision
    backend: Annotated[str, AfterValidator(check_backend_name)]
    value: float = Field(allow_inf_nan=False)
    false_reject_rate: float = Field(gt=0, lt=1)  # guaranteed on average over calibrations of this size
    upper_bound_95: float = Field(gt=0, le=1)  # of the false-reject rate of this calibration, with 95 % confidence
    good_parts: int = Field(ge=1)
    good_parts_sha256: str  # over the hashes of the good frames
    seal: str = ""


class Decision(Settings):
    """The rule and the thresholds of a bundle."""

    post_filter: list[str]
    min_area_px: float = Field(default=1, ge=1, allow_inf_nan=False)
    mm_per_px: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    roi: Annotated[list[Pixels], Field(min_length=4, max_length=4)] | None = None
    ignore_mask: str | None = None
    tile: Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = None
    overlap: Pixels | None = None
    threshold: list[Threshold] = Field(default_factory=list)

    @field_validator("post_filter")
    @classmethod
    def _post_filter(cls, steps: list[str]) -> list[str]:
        check_post_filter(steps)
        return steps

    @field_validator("roi")
    @classmethod
    def _roi(cls, roi: list[int] | None) -> list[int] | None:
        if roi is not None and (roi[2] < 1 or roi[3] < 1):
            raise ValueError("x, y, width, height with a width and height of at least 1")
        return roi

    @model_validator(mode="after")
    def _tiles(self) -> Decision:
        if (self.tile is None) != (self.overlap is None):
            raise ValueError("`tile` and `overlap` together, or neither")
        if self.tile is not None and self.overlap is not None and not 0 <= 2 * self.overlap <= min(self.tile):
            raise ValueError(f"an overlap of at most half a tile, got {self.overlap} of {self.tile}")
        return self

    def rule(self, folder: Path, map_size: tuple[int, int], frame_size: tuple[int, int]) -> Rule:
        """The rule for frames and maps of these sizes (height, width); ``folder`` contains the ignore mask."""
        ignore = None if self.ignore_mask is None else read_image(folder / self.ignore_mask).max(axis=2) > 0
        return Rule(self.post_filter, map_size=map_size, frame_size=frame_size, min_area_px=self.min_area_px,
                    roi=self.roi, ignore=ignore, mm_per_px=self.mm_per_px)

    def rule_sha256(self, folder: Path) -> str:
        """SHA-256 over the rule: everything but thresholds and scale, and the ignore mask's content instead of its
        name.
        """
        rule = self.model_dump(exclude={"threshold", "mm_per_px", *(() if self.tile else ("tile", "overlap"))})
        if self.ignore_mask is not None:
            try:
                rule["ignore_mask"] = hashlib.sha256((folder / self.ignore_mask).read_bytes()).hexdigest()
            except OSError as error:
                raise BundleError(
                    f"cannot read the ignore mask {folder / self.ignore_mask}", got=error.strerror,
                    next="Put it beside decision.toml, or remove `ignore_mask` and calibrate again.") from error
        return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()

    def seal(self, threshold: Threshold, folder: Path, graph_sha256: str) -> str:
        """SHA-256 over the rule, the graph, and the threshold with its guarantee."""
        sealed = [self.rule_sha256(folder), graph_sha256, threshold.model_dump(exclude={"seal"})]
        return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()

    def threshold_for(self, precision: str, backend: str, folder: Path, graph_sha256: str) -> Threshold | None:
        """The threshold for a precision and backend, or None. Raises BundleError if its seal no longer matches."""
        for threshold in self.threshold:
            if (threshold.precision, threshold.backend) == (precision, backend):
                if threshold.seal != self.seal(threshold, folder, graph_sha256):
                    raise BundleError(
                        f"{folder / 'decision.toml'} was changed after it was calibrated",
                        got=f"another rule than the one behind the threshold {threshold.value:.6g}",
                        expected="the calibrated rule",
                        next=f"Run `lineside calibrate {folder}` again.",
                    )
                return threshold
        return None


def read_decision(folder: Path) -> Decision:
    """The decision of the bundle in ``folder``. Raises BundleError naming the wrong key."""
    path = folder / "decision.toml"
    advice = f"Correct {path}, or export the bundle again."
    return validate(Decision, read_toml(path, BundleError, advice), path, BundleError, advice)


def new_decision(folder: Path, post_filter: tuple[str, ...], tile: tuple[int, int] | None = None) -> None:
    """Write the ``decision.toml`` of a new bundle: the detector's post-filter, and the other keys as explained
    comments.

    tile: (width, height) of the tiles that the network was fitted on, in px of the frame; None for whole frames.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment("The rule for verdicts. After a change, run `lineside calibrate`: until then there "
                                 "are none."))
    tiling = {} if tile is None else {"tile": list(tile), "overlap": min(tile) // OVERLAP}
    for key, value in {"post_filter": list(post_filter), "min_area_px": 1.0, **tiling}.items():
        document.add(tomlkit.nl())
        document.add(tomlkit.comment(COMMENTS[key]))
        document.add(key, value)
    tiling_example = {} if tiling else {"tile": "[512, 512]", "overlap": "64"}
    for key, example in {"mm_per_px": "0.05", "roi": "[0, 0, 640, 480]", "ignore_mask": '"ignore.png"',
                         **tiling_example}.items():
        document.add(tomlkit.nl())
        document.add(tomlkit.comment(COMMENTS[key]))
        document.add(tomlkit.comment(f"{key} = {example}"))
    write_text_safely(folder / "decision.toml", tomlkit.dumps(document) + "\n")


def write_threshold(folder: Path, threshold: Threshold, graph_sha256: str, rule_sha256: str) -> Threshold:
    """Replace the threshold for a precision and backend in ``decision.toml`` by this one, sealed. Comments stay.

    rule_sha256: the rule that the threshold was calibrated for. Raises BundleError if the file has another rule by now,
    or cannot be written. Other thresholds are left alone: their own seals tell whether they still hold.
    """
    path = folder / "decision.toml"
    decision = read_decision(folder)
    if decision.rule_sha256(folder) != rule_sha256:
        raise BundleError(f"{path} was changed while the good parts were scored",
                          next=f"Run `lineside calibrate {folder}` again.")
    sealed = threshold.model_copy(update={"seal": decision.seal(threshold, folder, graph_sha256)})
    kept = [t for t in decision.threshold if (t.precision, t.backend) != (sealed.precision, sealed.backend)]
    _write_thresholds(path, [*kept, sealed])
    return sealed


def keep_thresholds(folder: Path, precisions: Collection[str]) -> None:
    """Remove the thresholds of all other precisions from ``decision.toml``. Raises BundleError if it cannot be
    written.
    """
    decision = read_decision(folder)
    kept = [threshold for threshold in decision.threshold if threshold.precision in precisions]
    if len(kept) < len(decision.threshold):
        _write_thresholds(folder / "decision.toml", kept)


def drop_threshold(folder: Path, precision: str, backend: str) -> None:
    """Remove one threshold from ``decision.toml``, if it is there. Raises BundleError if it cannot be written."""
    decision = read_decision(folder)
    kept = [threshold for threshold in decision.threshold if (threshold.precision,
                                                              threshold.backend) != (precision, backend)]
    if len(kept) < len(decision.threshold):
        _write_thresholds(folder / "decision.toml", kept)


def _write_thresholds(path: Path, thresholds: Sequence[Threshold]) -> None:
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    document.pop("threshold", None)
    tables = tomlkit.aot()
    for entry in thresholds:
        table = tomlkit.table()
        table.update(entry.model_dump())
        tables.append(table)
    document.add("threshold", tables)
    try:
        write_text_safely(path, tomlkit.dumps(document))
    except OSError as error:
        raise BundleError(f"cannot write {path}", got=error.strerror, expected="a writable folder with room",
                          next="The bundle is unchanged.") from error

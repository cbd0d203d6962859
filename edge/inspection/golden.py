"""Golden parts: frames in the bundle with the maps that they had at export. Whatever goes live must reproduce them first.

An engine that was built on another device, a graph that was changed and given new hashes, a driver that computes otherwise: each
loads without complaint, and each shows here before it decides about a part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BundleError, EngineError, EngineLostError
from edge.base.settings import Settings
from edge.bundle.bundle import Bundle
from edge.bundle.rule import Rule
from edge.engines.backends import get_backend
from edge.images.files import read_image, write_image
from edge.images.frames import Frame
from edge.images.maps import MapArray
from edge.inspection.inspector import Inspector

TOLERANCE = 2e-3  # of float32, as a share of the golden maps' range; export allows half of it between runtimes
Kind = Literal["good", "artificial defect", "faint artificial defect"]


class GoldenPart(Settings):
    """A golden part: its frame as the network sees it, a PNG in ``model/golden/``, and what it shows."""

    file: str
    kind: Kind


def write_golden(model: Path, frames: Sequence[Frame], maps: NDArray[np.float32], kinds: Sequence[Kind]) -> None:
    """Write ``golden/`` into ``model``: frames uint8 ``[h, w, c]`` of the input's size, their maps ``[N, 1, h, w]``, and what they show."""
    folder = model / "golden"
    folder.mkdir()
    parts = [GoldenPart(file=f"{number:02d}.png", kind=kind) for number, kind in enumerate(kinds, 1)]
    for part, frame in zip(parts, frames, strict=True):
        write_image(folder / part.file, frame)
    np.savez_compressed(folder / "maps.npz", maps=maps)
    (folder / "parts.json").write_text(json.dumps([part.model_dump() for part in parts], indent=1) + "\n")


def write_golden_maps(model: Path, precision: str, maps: MapArray) -> None:
    """Write the golden maps ``[N, h, w]`` of a precision that has its own."""
    np.savez_compressed(model / "golden" / f"maps-{precision}.npz", maps=maps[:, None])


def read_golden(bundle: Bundle, precision: str = "fp32") -> tuple[list[GoldenPart], list[Frame], MapArray]:
    """The golden parts of a bundle, their frames, and their maps ``[N, h, w]`` in a precision: float32's where it has none of its own.

    Raises BundleError where there are none.
    """
    folder = bundle.folder / "model" / "golden"
    size = (bundle.card.map.height, bundle.card.map.width)
    try:
        parts = [GoldenPart.model_validate(part) for part in json.loads((folder / "parts.json").read_text())]
        frames = [read_image(folder / part.file) for part in parts]
        own = folder / f"maps-{precision}.npz"
        with np.load(own if own.exists() else folder / "maps.npz") as data:
            maps = np.asarray(data["maps"], np.float32)[:, 0]
        kinds = {part.kind == "good" for part in parts}
        if kinds != {True, False} or maps.shape != (len(parts), *size):
            raise ValueError(f"{len(parts)} parts with maps of shape {maps.shape}")
    except Exception as error:  # whatever a file that is missing or of another form makes json, pydantic or numpy raise
        raise BundleError(f"{bundle.folder} has no usable golden parts", got=str(error).splitlines()[0], expected="model/golden/",
                          next="Export the bundle again.") from error
    return parts, frames, maps


def golden_rule(bundle: Bundle) -> Rule:
    """The rule for golden parts, which have no camera frame: for the ignore mask's size, or the largest that was fitted on or that holds
    the region of interest; or for a tile."""
    if bundle.decision.tile is not None:
        return bundle.view_rule((0, 0))
    if bundle.decision.ignore_mask is not None:
        height, width = read_image(bundle.folder / bundle.decision.ignore_mask).shape[:2]
        return bundle.rule((height, width))
    x, y, w, h = bundle.decision.roi or (0, 0, 0, 0)
    return bundle.rule((max(bundle.card.frames.max_height, y + h), max(bundle.card.frames.max_width, x + w)))


def golden_scores(inspector: Inspector) -> dict[str, list[float]]:
    """Inspect the golden parts. Returns the scores of the good ones (``good``) and of the others (``defect``).

    Raises BundleError, naming the part, where a map differs by more than the precision may: then verdicts may differ as well, since no
    filter makes a difference larger.
    """
    bundle, precision = inspector.bundle, inspector.precision
    parts, frames, maps = read_golden(bundle, precision)
    tolerance = TOLERANCE
    if precision != "fp32":
        card = bundle.card.precisions[precision]
        tolerance = card.tolerance_on_device if card.device == get_backend(inspector.backend).device_name() else card.tolerance
    rule, scale = golden_rule(bundle), max(float(np.ptp(maps)), 1e-12)
    scores: dict[str, list[float]] = {"good": [], "defect": []}
    for part, frame, expected in zip(parts, frames, maps, strict=True):
        name = f"golden part {part.file} ({part.kind}) of {bundle.folder} comes out otherwise in {precision} on {inspector.backend}"
        advice = "Nothing of it goes live. Copy the bundle again, or export it again with what is installed here."
        try:
            got = inspector.raw_map(frame)
            if got.shape != expected.shape:
                raise EngineError("the map has another size", got=f"{got.shape}", expected=f"{expected.shape}")
            scores["good" if part.kind == "good" else "defect"].append(rule.score(rule.grey(got)))
        except EngineLostError:
            raise
        except EngineError as error:
            raise BundleError(name, got=str(error).rstrip("."), expected="the map that it had at export", next=advice) from error
        difference = float(np.abs(got - expected).max()) / scale
        if difference > tolerance:
            raise BundleError(name, got=f"a map that is off by {difference:.2g} of the range", next=advice,
                              expected=f"at most {tolerance:.2g}")
    return scores


def judge_golden(bundle: Bundle, scores: dict[str, list[float]], threshold: float) -> str | None:
    """Judge the golden parts by the threshold. Returns what the operator should know of it, if anything.

    Raises BundleError where the most ordinary good part would be rejected.
    """
    if min(scores["good"]) > threshold:
        first = next(part for part in read_golden(bundle)[0] if part.kind == "good")
        raise BundleError(f"golden part {first.file} (good) of {bundle.folder} would be rejected, and with it nearly every part",
                          got=f"a threshold of {threshold:.6g}", expected=f"at least its score, {min(scores['good']):.6g}",
                          next=f"Nothing of it goes live. Run `lineside calibrate {bundle.folder}` with good parts.")
    if max(scores["defect"]) <= threshold:
        return (f"the threshold {threshold:.6g} of {bundle.folder} passes every golden defect (the highest score is "
                f"{max(scores['defect']):.6g}); see with a bad part whether it rejects any")
    return None

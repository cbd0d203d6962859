"""Golden parts: frames in the bundle with the maps that they had at export. An engine must reproduce them to go live.

An engine built on another device, a changed graph with new hashes, a driver that computes something else: each of these
loads without an error. Golden parts catch them before they decide about a part.
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

TOLERANCE = 2e-3  # for float32, as a share of the golden maps' range; export allows half of it between runtimes
Kind = Literal["good", "artificial defect", "faint artificial defect"]


class GoldenPart(Settings):
    """A golden part: what it shows, and a PNG in ``model/golden/`` with its frame as the network sees it."""

    file: str
    kind: Kind


def write_golden(model: Path, frames: Sequence[Frame], maps: NDArray[np.float32], kinds: Sequence[Kind]) -> None:
    """Write ``golden/`` into ``model``: frames uint8 ``[h, w, c]`` of the input's size, maps ``[N, 1, h, w]``, and
    kinds.
    """
    folder = model / "golden"
    folder.mkdir()
    parts = [GoldenPart(file=f"{number:02d}.png", kind=kind) for number, kind in enumerate(kinds, 1)]
    for part, frame in zip(parts, frames, strict=True):
        write_image(folder / part.file, frame)
    np.savez_compressed(folder / "maps.npz", maps=maps)
    (folder / "parts.json").write_text(json.dumps([part.model_dump() for part in parts], indent=1) + "\n")


def write_golden_maps(model: Path, precision: str, maps: MapArray) -> None:
    """Write the golden maps ``[N, h, w]`` of a precision other than float32."""
    np.savez_compressed(model / "golden" / f"maps-{precision}.npz", maps=maps[:, None])


def read_golden(bundle: Bundle, precision: str = "fp32") -> tuple[list[GoldenPart], list[Frame], MapArray]:
    """The golden parts of a bundle, their frames, and their maps ``[N, h, w]`` in a precision (float32's, if it has
    none).

    Raises BundleError if they are missing or unusable.
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
    except Exception as error:  # whatever json, pydantic or numpy raise for a missing or malformed file
        raise BundleError(f"{bundle.folder} has no usable golden parts", got=str(error).splitlines()[0],
                          expected="model/golden/", next="Export the bundle again.") from error
    return parts, frames, maps


def golden_rule(bundle: Bundle) -> Rule:
    """The rule for golden parts, which have no camera frame: for a tile, or the ignore mask's size, or the largest
    fitted size, enlarged to hold the region of interest.
    """
    if bundle.decision.tile is not None:
        return bundle.view_rule((0, 0))
    if bundle.decision.ignore_mask is not None:
        height, width = read_image(bundle.folder / bundle.decision.ignore_mask).shape[:2]
        return bundle.rule((height, width))
    x, y, w, h = bundle.decision.roi or (0, 0, 0, 0)
    return bundle.rule((max(bundle.card.frames.max_height, y + h), max(bundle.card.frames.max_width, x + w)))


def golden_scores(inspector: Inspector) -> dict[str, list[float]]:
    """Inspect the golden parts. Returns the scores of the good ones (``good``) and of the others (``defect``).

    Raises BundleError, naming the part, if a map differs by more than the precision's tolerance. No filter increases a
    difference, so maps within the tolerance have scores within it as well.
    """
    bundle, precision = inspector.bundle, inspector.precision
    parts, frames, maps = read_golden(bundle, precision)
    tolerance = TOLERANCE
    if precision != "fp32":
        card = bundle.card.precisions[precision]
        same_device = card.device == get_backend(inspector.backend).device_name()
        tolerance = card.tolerance_on_device if same_device else card.tolerance
    rule, scale = golden_rule(bundle), max(float(np.ptp(maps)), 1e-12)
    scores: dict[str, list[float]] = {"good": [], "defect": []}
    for part, frame, expected in zip(parts, frames, maps, strict=True):
        name = (f"golden part {part.file} ({part.kind}) of {bundle.folder} has another map in {precision} on "
                f"{inspector.backend}")
        advice = "The bundle does not go live. Copy it again, or export it again with the packages installed here."
        try:
            got = inspector.raw_map(frame)
            if got.shape != expected.shape:
                raise EngineError("the map has another size", got=f"{got.shape}", expected=f"{expected.shape}")
            scores["good" if part.kind == "good" else "defect"].append(rule.score(rule.grey(got)))
        except EngineLostError:
            raise
        except EngineError as error:
            raise BundleError(name, got=str(error).rstrip("."), expected="the map from the export",
                              next=advice) from error
        difference = float(np.abs(got - expected).max()) / scale
        if difference > tolerance:
            raise BundleError(name, got=f"a difference of {difference:.2g} of the map's range", next=advice,
                              expected=f"at most {tolerance:.2g}")
    return scores


def judge_golden(bundle: Bundle, scores: dict[str, list[float]], threshold: float) -> str | None:
    """Apply the threshold to the golden parts' scores. Returns a warning for the operator, if there is reason for one.

    Raises BundleError if even the good part with the lowest score would be rejected.
    """
    if min(scores["good"]) > threshold:
        first = next(part for part in read_golden(bundle)[0] if part.kind == "good")
        raise BundleError(f"golden part {first.file} (good) of {bundle.folder} would be rejected, and so would nearly "
                          f"every part", got=f"a threshold of {threshold:.6g}", expected=f"at least its score, "
                          f"{min(scores['good']):.6g}", next=f"The bundle does not go live. Run `lineside calibrate "
                          f"{bundle.folder}` with good parts.")
    if max(scores["defect"]) <= threshold:
        return (f"the threshold {threshold:.6g} of {bundle.folder} passes every golden defect (the highest score is "
                f"{max(scores['defect']):.6g}); test with a bad part whether it rejects any")
    return None

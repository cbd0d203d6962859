"""The bundle: the folder that fitting produces and the line runs.

``model/`` holds what never changes after export (graphs, fit record, hashes); ``decision.toml`` holds the rule and the
thresholds that turn the graph's map into a verdict.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import tomlkit
from pydantic import Field

from edge.base.errors import BundleError, InputError
from edge.base.files import file_sha256, write_text_safely
from edge.base.settings import Settings, read_toml, validate
from edge.bundle.decision import Decision, Threshold, new_decision, read_decision
from edge.bundle.rule import Rule
from edge.engines.backends import get_backend
from edge.engines.engine import Precision
from edge.images.frames import Frame, FrameSizes
from edge.images.tiles import Tiles

FORMAT = 2  # format 1 had no golden parts
SEAL = "\n[seal]\n"
WORTH = 0.95  # another precision is used from this share of float32's time on; a smaller gain is measurement noise


class Input(Settings):
    """The graph's input: uint8 ``[N, height, width, channels]``."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: int = Field(ge=1, le=3)


class MapSize(Settings):
    """The graph's output: float32 ``[N, 1, height, width]``."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)


class Frames(Settings):
    """The frames that the network was fitted on, in px."""

    min_width: int
    max_width: int
    min_height: int
    max_height: int
    colour: bool


class PrecisionCard(Settings):
    """What `lineside quantize` measured about a precision: whether it decides as float32 does, and how fast it is."""

    passed: bool
    reason: str  # why it did not pass; empty if it did
    tolerance: float = Field(ge=0)  # how much its golden maps may differ, as a share of their range
    tolerance_on_device: float = Field(ge=0)  # the same on ``device``, where only the number of threads may differ
    ms_per_image: dict[str, float]  # by backend; all precisions were measured in turn on ``device``
    device: str
    rule_sha256: str  # the decision rule that it was measured with


class ModelCard(Settings):
    """``model/model.toml``."""

    format: int
    name: str
    detector: str
    input: Input
    map: MapSize
    frames: Frames
    fit: dict[str, Any]
    files: dict[str, str]  # path in model/ -> SHA-256
    precisions: dict[Precision, PrecisionCard] = Field(default_factory=dict)  # those that `lineside quantize` measured


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match their hashes."""

    folder: Path
    card: ModelCard
    decision: Decision

    def graph(self, precision: str) -> Path:
        """The ONNX graph of a precision. Raises BundleError if the bundle has none."""
        name = f"{'fp32' if precision == 'bf16' else precision}.onnx"
        if name not in self.card.files:
            raise BundleError(f"{self.folder} has no graph for precision {precision}",
                              got=", ".join(sorted(self.card.files)), expected=f"model/{name}")
        return self.folder / "model" / name

    def offered(self) -> list[Precision]:
        """The precisions that may be used for verdicts: float32, and those that passed the gate with the current
        rule.
        """
        rule = self.decision.rule_sha256(self.folder) if self.card.precisions else ""
        passed = [name for name, found in self.card.precisions.items() if found.passed and found.rule_sha256 == rule]
        return ["fp32", *(name for name in passed if name != "fp32")]

    def choose(self, precision: str, backend: str, ungated: bool = False) -> Precision:
        """The precision to run. ``auto``: the fastest that passed the gate and has a threshold for ``backend``, or
        float32 if none is at least 5 % faster.

        ungated: also allow one that did not pass. Raises InputError for an unknown precision, BundleError for one that
        was not measured or that changes decisions.
        """
        if precision == "auto":
            card, times, on = self.card.precisions, {}, get_backend(backend)
            able = [name for name in self.offered() if on.can_run(name, self.graph_sha256(name))] or ["fp32"]
            for name in able:
                if name == "fp32" or self.threshold(name, backend) is not None:
                    times[name] = card[name].ms_per_image.get(backend, float("inf")) if name in card else float("inf")
            return min(times or {"fp32": 0.0}, key=lambda name: times[name] if name == "fp32" else times[name] / WORTH)
        offered = self.offered()
        for name in get_args(Precision) if ungated else offered:
            if name == precision:
                return name
        if precision not in get_args(Precision):
            raise InputError("there is no such precision", got=repr(precision),
                             expected=", ".join([*get_args(Precision), "auto"]))
        found = self.card.precisions.get(precision)  # type: ignore[call-overload]
        if found is None or found.passed:
            got = "one that was " + ("not measured against float32" if found is None else "measured with another rule")
            advice = f"Run `lineside quantize {self.folder}`."
        else:
            got = f"one that changes decisions: {found.reason}"
            advice = f"{self.folder / 'report.html'} shows which."
        raise BundleError(f"{self.folder} does not offer precision {precision}", got=got,
                          expected=", ".join([*offered, "auto"]), next=advice)

    def graph_sha256(self, precision: str) -> str:
        """SHA-256 of the ONNX graph of a precision."""
        return self.card.files[self.graph(precision).name]

    def threshold(self, precision: str, backend: str) -> Threshold | None:
        """The calibrated threshold, or None. Raises BundleError if the rule was changed after calibration."""
        return self.decision.threshold_for(precision, backend, self.folder, self.graph_sha256(precision))

    def calibrated_threshold(self, precision: str, backend: str) -> Threshold:
        """The calibrated threshold. Raises BundleError if there is none."""
        threshold = self.threshold(precision, backend)
        if threshold is None:
            raise BundleError(f"{self.folder} has no threshold for {precision} on {backend}",
                              got="an uncalibrated bundle", next=f"Run `lineside calibrate {self.folder}`.")
        return threshold

    def rule(self, frame_size: tuple[int, int]) -> Rule:
        """The decision rule for frames of (height, width) px. Raises InputError for a size that it does not fit."""
        tiles = self.tiles(frame_size)
        return self.decision.rule(self.folder, self.map_size if tiles is None else tiles.map_size, frame_size)

    def view_rule(self, frame_size: tuple[int, int]) -> Rule:
        """The rule for one network input from frames of that size: the whole frame, or a tile anywhere in the
        region.
        """
        if self.decision.tile is None:
            return self.rule(frame_size)
        decision = self.decision.model_copy(update={"roi": None, "ignore_mask": None})
        return decision.rule(self.folder, self.map_size, (self.decision.tile[1], self.decision.tile[0]))

    def tiles(self, frame_size: tuple[int, int]) -> Tiles | None:
        """The tiles of frames of (height, width) px; None if the network sees whole frames. Raises InputError."""
        tile = self.decision.tile
        if tile is None or self.decision.overlap is None:
            return None
        return Tiles(frame_size, (tile[1], tile[0]), self.decision.overlap, self.map_size)

    def views(self, frame: Frame) -> list[Frame]:
        """The network's views of a frame: the whole frame, or the tiles that overlap the region of interest."""
        size = (frame.shape[0], frame.shape[1])
        tiles = self.tiles(size)
        if tiles is None:
            return [frame]
        tiles.keep(self.rule(size).region)
        return [tiles.cut(frame, index) for index in range(len(tiles))]

    def check(self, frame: Frame) -> None:
        """Raise InputError for a frame so different from the fitted ones that a verdict would be meaningless."""
        tile = self.decision.tile
        self.sizes.check(frame, None if tile is None else (tile[1], tile[0]))

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the graph's map."""
        return (self.card.map.height, self.card.map.width)

    @cached_property
    def sizes(self) -> FrameSizes:
        """The frame sizes and colour that the network was fitted on."""
        return FrameSizes(**self.card.frames.model_dump())

    def images(self) -> dict[str, Any]:
        """The record of the good images: ``data`` (folder), ``fitted`` and ``held_out`` (name and SHA-256 of each
        image).
        """
        try:
            return dict(json.loads((self.folder / "model" / "images.json").read_text()))
        except (OSError, ValueError) as error:
            raise BundleError(f"{self.folder} has no record of the images that it was fitted on", got=str(error),
                              expected="model/images.json", next="Export the bundle again.") from error


def load_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle. Raises BundleError if it is missing, incomplete, or changed by a single bit."""
    folder = Path(folder)
    path = folder / "model" / "model.toml"
    advice = "Copy the bundle again, or run `lineside export` again."
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}", got="a file" if folder.exists() else "nothing",
                          expected="a folder that `lineside export` wrote", next=advice)
    data = read_toml(path, BundleError, advice)  # also shows that the file is readable
    body, found, _ = path.read_text(encoding="utf-8").rpartition(SEAL)
    seal = data.pop("seal", None)
    if not found or not isinstance(seal, dict) or seal.get("sha256") != hashlib.sha256(body.encode()).hexdigest():
        raise BundleError(f"{path} is damaged", got="content that does not match its SHA-256", next=advice)
    if data.get("format") != FORMAT:
        raise BundleError(f"{path} has another format", got=data.get("format"), expected=FORMAT,
                          next="Export it again.")
    card = validate(ModelCard, data, path, BundleError, advice)
    for name, expected in card.files.items():
        file = folder / "model" / name
        try:
            got = file_sha256(file)
        except OSError as error:
            raise BundleError(f"cannot read {file}", got=error.strerror, expected="the files that model.toml lists",
                              next=advice) from error
        if got != expected:
            raise BundleError(f"{file} is damaged", got=f"SHA-256 {got[:12]}", expected=f"{expected[:12]}", next=advice)
    return Bundle(folder, card, read_decision(folder))


def write_card(model: Path, card: ModelCard) -> None:
    """Write ``model.toml`` into ``model``, with its own hash at the end."""
    body = tomlkit.dumps(card.model_dump())
    write_text_safely(model / "model.toml", f'{body}{SEAL}sha256 = "{hashlib.sha256(body.encode()).hexdigest()}"\n')


def hash_files(model: Path) -> dict[str, str]:
    """SHA-256 of every file in ``model`` except model.toml, by path relative to ``model``."""
    return {p.relative_to(model).as_posix(): file_sha256(p) for p in sorted(model.rglob("*")) if p.is_file()
            and p.name != "model.toml"}


def write_bundle(
    temporary: Path, out: Path, *, name: str, detector: str, input_size: tuple[int, int, int],
    map_size: tuple[int, int],
    sizes: FrameSizes, fit: Mapping[str, Any], images: Mapping[str, Any], post_filter: tuple[str, ...],
    tile: tuple[int, int] | None = None,
) -> Bundle:
    """Complete a bundle in ``temporary``, whose ``model/`` already holds the graphs; check it, and rename it to
    ``out``.

    input_size: (height, width, channels); map_size: (height, width); tile: (width, height) of the tiles fitted on, if
    any. ``out`` appears only if everything succeeded.
    """
    model = temporary / "model"
    (model / "images.json").write_text(json.dumps(images, indent=1) + "\n")
    card = ModelCard(
        format=FORMAT, name=name, detector=detector,
        input=Input(height=input_size[0], width=input_size[1], channels=input_size[2]),
        map=MapSize(height=map_size[0], width=map_size[1]), frames=Frames(**asdict(sizes)), fit=dict(fit),
        files=hash_files(model),
    )
    write_card(model, card)
    new_decision(temporary, post_filter, tile)
    load_bundle(temporary)
    if out.is_dir():
        out.rmdir()  # empty, as the caller has checked
    shutil.move(temporary, out)
    return load_bundle(out)

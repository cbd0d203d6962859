"""The bundle: the one artefact between fitting and the line, a folder.

``model/`` holds what never changes after export (graph, record, hashes); ``decision.toml`` what is decided about its map.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import Field

from edge.decision import Decision, Threshold, new_decision, read_decision
from edge.errors import BundleError
from edge.prepare import FrameSizes
from edge.rule import Rule
from edge.settings import Settings, read_toml, validate, write_text_safely

FORMAT = 2  # 1 had no golden parts
SEAL = "\n[seal]\n"


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


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were checked against their hashes."""

    folder: Path
    card: ModelCard
    decision: Decision

    def graph(self, precision: str) -> Path:
        """The ONNX graph of a precision. Raises BundleError when the bundle has none."""
        name = f"{'fp32' if precision == 'bf16' else precision}.onnx"
        if name not in self.card.files:
            raise BundleError(f"{self.folder} has no graph for precision {precision}", got=", ".join(sorted(self.card.files)),
                              expected=f"model/{name}")
        return self.folder / "model" / name

    def graph_sha256(self, precision: str) -> str:
        """SHA-256 of the ONNX graph of a precision."""
        return self.card.files[self.graph(precision).name]

    def threshold(self, precision: str, backend: str) -> Threshold | None:
        """The calibrated threshold, or None. Raises BundleError when the rule was changed after it was calibrated."""
        return self.decision.threshold_for(precision, backend, self.folder, self.graph_sha256(precision))

    def calibrated_threshold(self, precision: str, backend: str) -> Threshold:
        """The calibrated threshold. Raises BundleError when there is none."""
        threshold = self.threshold(precision, backend)
        if threshold is None:
            raise BundleError(f"{self.folder} has no threshold for {precision} on {backend}", got="an uncalibrated bundle",
                              next=f"Run `lineside calibrate {self.folder}`.")
        return threshold

    def rule(self, frame_size: tuple[int, int]) -> Rule:
        """The decision rule for frames of (height, width) px."""
        return self.decision.rule(self.folder, (self.card.map.height, self.card.map.width), frame_size)

    @property
    def sizes(self) -> FrameSizes:
        """The frame sizes and colour that the network was fitted on."""
        return FrameSizes(**self.card.frames.model_dump())

    def images(self) -> dict[str, Any]:
        """The record of the good images: ``data`` (folder), ``fitted`` and ``held_out`` (name and SHA-256 of each)."""
        try:
            return dict(json.loads((self.folder / "model" / "images.json").read_text()))
        except (OSError, ValueError) as error:
            raise BundleError(f"{self.folder} does not say which images it was fitted on", got=str(error),
                              expected="model/images.json", next="Export the bundle again.") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Read and check a bundle. Raises BundleError for one that is missing, cut short, or changed by a single bit."""
    path = folder / "model" / "model.toml"
    advice = "Copy the bundle again, or run `lineside export` again."
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}", got="a file" if folder.exists() else "nothing",
                          expected="a folder that `lineside export` wrote", next=advice)
    data = read_toml(path, BundleError, advice)  # also proves that it can be read
    body, found, _ = path.read_text(encoding="utf-8").rpartition(SEAL)
    seal = data.pop("seal", None)
    if not found or not isinstance(seal, dict) or seal.get("sha256") != hashlib.sha256(body.encode()).hexdigest():
        raise BundleError(f"{path} is damaged", got="a content that does not fit its SHA-256", next=advice)
    if data.get("format") != FORMAT:
        raise BundleError(f"{path} is of another format", got=data.get("format"), expected=FORMAT, next="Export it again.")
    card = validate(ModelCard, data, path, BundleError, advice)
    for name, expected in card.files.items():
        file = folder / "model" / name
        try:
            got = file_sha256(file)
        except OSError as error:
            raise BundleError(f"cannot read {file}", got=error.strerror, expected="the files that model.toml lists", next=advice) from error
        if got != expected:
            raise BundleError(f"{file} is damaged", got=f"SHA-256 {got[:12]}", expected=f"{expected[:12]}", next=advice)
    return Bundle(folder, card, read_decision(folder))


def write_bundle(
    temporary: Path, out: Path, *, name: str, detector: str, input_size: tuple[int, int, int], map_size: tuple[int, int],
    sizes: FrameSizes, fit: Mapping[str, Any], images: Mapping[str, Any], post_filter: tuple[str, ...],
) -> Bundle:
    """Complete a bundle in ``temporary``, whose ``model/`` holds the graphs already; check it, and rename it to ``out``.

    input_size: (height, width, channels); map_size: (height, width). Nothing appears under ``out`` unless all is whole.
    """
    model = temporary / "model"
    (model / "images.json").write_text(json.dumps(images, indent=1) + "\n")
    card = ModelCard(
        format=FORMAT, name=name, detector=detector,
        input=Input(height=input_size[0], width=input_size[1], channels=input_size[2]),
        map=MapSize(height=map_size[0], width=map_size[1]), frames=Frames(**asdict(sizes)), fit=dict(fit),
        files={p.relative_to(model).as_posix(): file_sha256(p) for p in sorted(model.rglob("*")) if p.is_file() and p.name != "model.toml"},
    )
    body = tomlkit.dumps(card.model_dump())
    write_text_safely(model / "model.toml", f'{body}{SEAL}sha256 = "{hashlib.sha256(body.encode()).hexdigest()}"\n')
    new_decision(temporary, post_filter)
    load_bundle(temporary)
    if out.is_dir():
        out.rmdir()  # empty: checked by the caller before any work
    shutil.move(temporary, out)
    return load_bundle(out)

"""A run: the folder that a fit writes, with the weights, a record and the loss curves."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.images import GoodImage
from detectors.registry import detector_class
from edge.base.errors import InputError
from edge.images.frames import FrameSizes


@dataclass(frozen=True)
class RunRecord:
    """Everything about a fit except the weights: enough to build the network and to identify its images.

    A completed fit with --steps can be repeated from its seed and steps. One with --minutes depends on the machine's
    speed.
    """

    detector: str
    arguments: dict[str, Any]  # of the network's constructor
    height: int
    width: int
    data: str  # the folder of good images, as the user gave it
    fingerprint: str  # SHA-256 over all good images
    seed: int
    steps: int
    minutes: float
    interrupted: bool
    precision: str  # of the fit: bfloat16 or float32
    threads: int
    torch: str
    backbone: str | None  # the backbone and its weights file; None if the detector uses none
    natural_images: str  # the source of the photographs for artificial defects
    sizes: FrameSizes
    fitted: list[GoodImage]
    held_out: list[GoodImage]
    tile: int | None = None  # side in px of the tiles that frames were cut into; None: whole frames


def write_run(out: Path, temporary: Path, record: RunRecord, weights: Mapping[str, Tensor],
              history: Sequence[Mapping[str, float]]) -> None:
    """Write ``weights.pt``, ``run.json``, ``loss.csv`` and ``loss.png`` into ``temporary``, then rename it to ``out``.

    Raises InputError if the disk is full, or if ``out`` has appeared in the meantime.
    """
    try:
        torch.save(dict(weights), temporary / "weights.pt")
        (temporary / "run.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
        with (temporary / "loss.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *term_names(history)])
            writer.writeheader()
            writer.writerows({"step": step, **terms} for step, terms in enumerate(history, 1))
        plot_losses(temporary / "loss.png", history)
        old = temporary.with_suffix(".old")
        if out.is_dir():
            out.resolve().rename(old)  # empty, or the stopped run that was resumed: checked when the fit began
        temporary.rename(out.resolve())
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        raise InputError(f"the run {out} cannot be written", got=str(error).splitlines()[0],
                         expected="enough disk space",
                         next="Free some space, or give another --out, and fit again.") from error


def term_names(history: Sequence[Mapping[str, float]]) -> list[str]:
    """The names of all loss terms, in order of first appearance."""
    return list(dict.fromkeys(name for terms in history for name in terms))


def plot_losses(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Plot each loss term over the steps, smoothed, on a symmetric logarithmic axis."""
    from matplotlib.figure import Figure  # imported here: it takes half a second

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(history) // 100)
    for name in term_names(history):
        steps = [step for step, terms in enumerate(history, 1) if name in terms]
        values = [history[step - 1][name] for step in steps]
        windows = [values[max(0, i - window + 1): i + 1] for i in range(len(values))]
        smooth = [sum(part) / len(part) for part in windows]
        axes.plot(steps, smooth, label=name)
    axes.set(xlabel="step", ylabel=f"loss (mean over {window} steps)", yscale="symlog", title="Weighted loss terms")
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def read_run(folder: Path) -> tuple[RunRecord, Detector]:
    """Read a run: its record, and its fitted network in evaluation mode. Raises InputError for a damaged run."""
    try:
        data = json.loads((folder / "run.json").read_text())
        data["sizes"] = FrameSizes(**data["sizes"])
        for key in ("fitted", "held_out"):
            data[key] = [GoodImage(**image) for image in data[key]]
        record = RunRecord(**data)
        network = detector_class(record.detector)(**record.arguments)
        network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    except InputError:
        raise
    except Exception as error:  # json, torch and pickle raise many types for a damaged file
        first_line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{folder} is not a complete run", got=f"{type(error).__name__}: {first_line}",
                         expected="run.json and weights.pt as `lineside fit` wrote them",
                         next="Run `lineside fit` again.") from error
    return record, network.eval()


def claim_folder(out: Path, kind: str, replace: bool = False) -> Path:
    """Create an empty temporary folder next to ``out`` to write into.

    kind: what is written, for the message. Raises InputError if ``out`` exists and is not empty, unless ``replace``.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not replace)):
        raise InputError(f"{out} exists already", expected="a folder that does not exist yet, so that nothing is lost",
                         next=f"Give another --out, or remove the old {kind}.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write beside {out}", got=error.strerror, expected="a writable folder") from error
    return temporary

"""A run: what a fit leaves behind, a folder with weights, record and loss curves."""

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
    """Everything about a fit but the weights: enough to build the network, and to know its images.

    A fit by --steps that was not interrupted is repeated by its seed and steps; one by --minutes depends on the machine's speed.
    """

    detector: str
    arguments: dict[str, Any]  # of the network's constructor
    height: int
    width: int
    data: str  # the folder of good images, as it was given
    fingerprint: str  # SHA-256 over all good images
    seed: int
    steps: int
    minutes: float
    interrupted: bool
    precision: str  # of the fit's arithmetic
    threads: int
    torch: str
    backbone: str | None  # whose ImageNet weights were used, where the detector uses any
    natural_images: str  # where artificial defects were cut from
    sizes: FrameSizes
    fitted: list[GoodImage]
    held_out: list[GoodImage]
    tile: int | None = None  # side in px of the frame of what the network saw at once; None: whole frames


def write_run(out: Path, temporary: Path, record: RunRecord, weights: Mapping[str, Tensor],
              history: Sequence[Mapping[str, float]]) -> None:
    """Write ``weights.pt``, ``run.json``, ``loss.csv`` and ``loss.png`` into ``temporary``, then rename it to ``out``.

    Raises InputError when the disk is full, or ``out`` was made by somebody else meanwhile.
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
            out.resolve().rename(old)  # empty, or the stopped run that this one goes on from: checked when the fit began
        temporary.rename(out.resolve())
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
        raise InputError(f"the run {out} cannot be written", got=str(error).splitlines()[0], expected="room on the disk",
                         next="Make room, or give another --out, and fit again.") from error


def term_names(history: Sequence[Mapping[str, float]]) -> list[str]:
    """The names of all loss terms, in the order in which they appear."""
    return list(dict.fromkeys(name for terms in history for name in terms))


def plot_losses(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draw each loss term over the steps, smoothed, on a logarithmic axis where it is positive."""
    from matplotlib.figure import Figure  # imported here: it takes half a second

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(history) // 100)
    for name in term_names(history):
        steps = [step for step, terms in enumerate(history, 1) if name in terms]
        values = [history[step - 1][name] for step in steps]
        smooth = [sum(values[max(0, i - window + 1): i + 1]) / len(values[max(0, i - window + 1): i + 1]) for i in range(len(values))]
        axes.plot(steps, smooth, label=name)
    axes.set(xlabel="step", ylabel=f"loss (mean over {window} steps)", yscale="symlog", title="Loss terms, weighted as they are added")
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def read_run(folder: Path) -> tuple[RunRecord, Detector]:
    """The record of a run and its network with its weights, in evaluation mode. Raises InputError for a damaged run."""
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
    except Exception as error:  # whatever a damaged file makes json, torch or pickle raise
        raise InputError(f"{folder} is not a whole run", got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                         expected="run.json and weights.pt as `lineside fit` wrote them", next="Run `lineside fit` again.") from error
    return record, network.eval()


def claim_folder(out: Path, kind: str, replace: bool = False) -> Path:
    """Make an empty temporary sibling of ``out`` to write into.

    Raises InputError if ``out`` exists and is not empty, unless it may be replaced.
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

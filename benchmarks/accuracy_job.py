"""One job of the accuracy benchmark, in its own process: fit or resume; export; evaluate."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import openvino
import torch
from montage import FULL, take_heat
from torch.utils.flop_counter import FlopCounterMode

from calib.metrics import evaluate, labelled_images
from detectors.checkpoint import checkpoint_path, read_checkpoint
from detectors.fit import Budget, Settings, fit
from detectors.run import read_run
from edge.base.errors import InputError, LinesideError
from edge.base.files import write_text_safely
from edge.images.files import good_folder, list_images
from export.onnx import export_run

Tell = Callable[[str, float, float], None]  # reports the current work, the share of the fit done, and its s left


@dataclass(frozen=True)
class Job:
    """One row of the table: a fit, its export and evaluation, in ``folder``. The folder's name encodes the settings."""

    data: Path
    variant: str  # FULL, or the name of an ablation
    settings: Settings
    budget: Budget
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.settings.detector} on {self.data.name}" + ("" if self.variant == FULL else f", {self.variant}")

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def result(self) -> dict[str, Any] | None:
        """The figures, or None until they are complete."""
        try:
            return dict(json.loads((self.folder / "result.json").read_text()))
        except (OSError, ValueError):
            return None

    def fitted(self) -> bool:
        """Whether the fit was completed."""
        whole = (self.run / "run.json").is_file() and not checkpoint_path(self.run).exists()
        return whole and not json.loads((self.run / "run.json").read_text())["interrupted"]

    def row(self, error: str | None) -> dict[str, Any]:
        """The job's row in the report: its figures, its error, or its progress."""
        row: dict[str, Any] = {"set": self.data.name, "detector": self.settings.detector, "variant": self.variant}
        result = self.result()
        if result is not None:
            return {**row, "status": "done", **result}
        if error is not None:
            return {**row, "status": "failed", "error": error}
        if self.fitted():
            return {**row, "status": "fitted, not evaluated"}
        try:
            minutes = f"{read_checkpoint(self.run).seconds / 60:.1f}"
            of_all = f" of {self.budget.minutes:g}" if self.budget.minutes else ""
            return {**row, "status": f"fit stopped after {minutes}{of_all} min"}
        except InputError:
            return {**row, "status": "not begun"}


def fingerprint(folder: Path, files: list[Path]) -> str:
    """SHA-256 over the names (relative to ``folder``) and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def sources() -> str:
    """A fingerprint of the code that produces the figures."""
    root = Path(__file__).resolve().parents[1]
    folders = ("edge", "calib", "detectors", "export")
    return fingerprint(root, [path for folder in folders for path in sorted((root / folder).rglob("*.py"))])[:12]


def measure(job: Job, tell: Tell) -> dict[str, Any]:
    """Fit or resume; export; evaluate. Raises KeyboardInterrupt if the fit was stopped early."""
    for leftover in job.folder.glob(".*"):  # of a process that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    if not job.fitted():
        resume = checkpoint_path(job.run).exists()
        if not resume:
            shutil.rmtree(job.run, ignore_errors=True)  # interrupted, without disk space for a checkpoint
        record = fit(job.settings, job.data, job.run, job.budget, resume=resume,
                     report=lambda step: tell(f"{step.phase}, step {step.step}", step.share, step.seconds_left))
        if record.interrupted:
            raise KeyboardInterrupt
    tell("exporting", 1.0, 0.0)
    record, network = read_run(job.run)
    shutil.rmtree(job.folder / "bundle", ignore_errors=True)
    bundle, parity = export_run(job.run, job.folder / "bundle", f"{job.settings.detector}-{job.data.name}")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, bundle.card.input.channels, record.height, record.width))
    tell("evaluating", 1.0, 0.0)
    cv2.setNumThreads(-1)  # as at the line; a fit sets it to 1
    figures = asdict(evaluate(bundle, job.data))
    heat, milliseconds = take_heat(bundle, labelled_images(job.data))
    heat.write(job.folder / "maps.npz")
    return {
        **{name: figures[name] for name in ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")},
        "minutes": record.minutes, "steps": record.steps, "parameters": sum(p.numel() for p in network.parameters()),
        "gflops": counter.get_total_flops() / 1e9, "ms_per_image": milliseconds,
        "threads": len(os.sched_getaffinity(0)),
        "input": [record.height, record.width, bundle.card.input.channels], "parity": parity,
        "backbone": record.backbone,
        "natural_images": record.natural_images, "train_good": len(list_images(good_folder(job.data))),
        "good": figures["good"], "defective": figures["defective"], "unmarked": figures["unmarked"],
        "torch": record.torch, "openvino": openvino.get_version(),
        "bundle": f"{job.folder.parent.name}/{job.folder.name}/bundle",
    }


def work(job: Job, code: str, pipe: Connection) -> None:
    """A job's process: sends its progress, then its error or None. It exits when the pipe's other end is closed."""
    os.setpgrp()  # a terminal's Ctrl-C reaches only the command, which forwards it
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / "log.txt").open("a") as log, (job.folder / "lock").open("w") as lock:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a job that still runs after its command was killed
            if job.result() is None:
                result = measure(job, lambda *now: pipe.send(now))
                write_text_safely(job.folder / "result.json", json.dumps({**result, "sources": code}, indent=1) + "\n")
        pipe.send(None)
    except KeyboardInterrupt:
        pipe.send("stopped by a signal")
    except LinesideError as error:
        pipe.send(str(error))
    except BrokenPipeError:
        return
    except Exception as error:  # one job's failure must not stop the others
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")

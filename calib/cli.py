"""``lineside calibrate`` and ``lineside evaluate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="The bundle; its decision.toml gets the threshold.")],
    false_reject_rate: Annotated[float, typer.Option(help="The share of good parts that may be rejected.")] = 0.05,
    good: Annotated[Path | None, typer.Option(help="Good parts not fitted on; those that the fit set aside unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Work out the threshold from good parts, with a promise about false rejects."""
    from calib.threshold import calibrate as run_calibration
    from calib.threshold import describe
    from edge.bundle import load_bundle
    from edge.console import progress_bar

    with progress_bar("scoring good parts") as progress:
        result = run_calibration(load_bundle(bundle), good, false_reject_rate, progress)
    threshold = result.threshold
    if as_json:
        print(json.dumps({**threshold.model_dump(), "threshold": threshold.value, "scores": result.scores,
                          "duplicates": result.duplicates}))
        return
    if result.duplicates:
        print(f"{len(result.duplicates)} images show the same pixels as another one and were counted once.")
    print(f"{bundle}: threshold {threshold.value:.6g} for {threshold.precision} on {threshold.backend}; "
          f"{describe(result.scores, threshold.value)}.")
    print(f"Promise: at most {threshold.false_reject_rate:g} of good parts rejected, on average over calibrations with "
          f"{threshold.good_parts} parts; for this one below {threshold.upper_bound_95:.3f} with 95 % confidence, "
          "as long as parts and light stay as they were.")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    data: Annotated[Path, typer.Option(help="Folder with test/good, test/<defect> and ground_truth/<defect> (MVTec AD layout).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Measure a bundle on labelled images."""
    from edge.extras import need

    need("train", "torch", "pyaupro", "sklearn")
    from rich.console import Console
    from rich.table import Table

    from calib.metrics import evaluate as run_evaluation
    from edge.bundle import load_bundle
    from edge.console import progress_bar

    with progress_bar("inspecting") as progress:
        figures = asdict(run_evaluation(load_bundle(bundle), data, progress))
    if as_json:
        print(json.dumps(figures))
        return
    table = Table("figure", "value", title=f"{bundle} on {data}")
    for name, value in figures.items():
        table.add_row(name, "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)

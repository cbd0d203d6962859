"""``lineside check`` and ``lineside doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.engines.options import BACKEND, PRECISION

if TYPE_CHECKING:
    from edge.tools.check import Budget

app = typer.Typer()
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@app.command()
def check(
    line: Annotated[Path, typer.Argument(help="The line file. The line must not be running.", metavar="LINE.toml")],
    rate: Annotated[float | None, typer.Option(help="Parts a second.", min=0.001)] = None,
    speed: Annotated[float | None, typer.Option(help="Speed of the belt, in mm a second.", min=0.001)] = None,
    pitch: Annotated[float | None, typer.Option(help="Distance between parts, in mm; with --speed it gives the rate.",
                                                min=0.001)] = None,
    frames: Annotated[int, typer.Option(help="How many frames to measure; p99.9 needs 1000.", min=50)] = 1000,
    precision: PRECISION = "fp32",
    backend: BACKEND = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the budget as JSON.")] = False,
) -> None:
    """Measure a line's latency budget on this machine: margin, highest safe speed, what to change.

    Exit code 1 where it does not fit.
    """
    from edge.base.console import progress_bars
    from edge.base.errors import InputError
    from edge.tools.check import advice, measure

    if pitch is not None:
        if speed is None or rate is not None:
            raise InputError("--pitch gives the rate together with --speed", got="--rate too" if rate else "no --speed",
                             next="Give --rate alone, or --speed and --pitch.")
        rate = speed / pitch
    with progress_bars() as progress:
        file, budget = measure(line, precision=precision, backend=backend, frames=frames, rate=rate, progress=progress)
    changes = advice(budget, precision)
    if as_json:
        print(json.dumps({
            "stages": {stage.name: {name: round(stage.at(share), 3) for name, share in SHARES.items()}
                       for stage in budget.stages},
            "frame": budget.frame,
            "available_ms": budget.available, "needed_ms": round(budget.needed, 3),
            "margin_ms": round(budget.margin, 3), "lead_ms": budget.lead,
            "lead_needed_ms": round(budget.lead_needed, 3), "rate": rate, "highest_rate": round(budget.highest_rate, 3),
            "highest_speed_share": round(budget.highest_speed, 4),
            "highest_speed_mm_s": None if speed is None else round(speed * budget.highest_speed, 1),
            "fits": budget.fits, "advice": changes}))
    else:
        _print_budget(file.line.name, budget, speed, changes)
    if not budget.fits:
        raise typer.Exit(1)


def _print_budget(line: str, budget: Budget, speed: float | None, changes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{line}: from the trigger to the verdict, frames of {' x '.join(map(str, budget.frame))}"
    table = Table("stage", *(f"{name} ms" for name in SHARES), title=title)
    for stage in budget.stages:
        table.add_row(stage.name, *(f"{stage.at(share):.2f}" for share in SHARES.values()))
    console = Console()
    console.print(table)
    colour = "green" if budget.margin >= 0 else "red"
    console.print(f"needed at p99.9: {budget.needed:.1f} ms of {budget.available:g} ms (travel_ms - lead_ms); "
                  f"margin [{colour}]{budget.margin:.1f} ms", soft_wrap=True, highlight=False)
    asked = f", {budget.rate:.1f} now" if budget.rate else ""
    console.print(f"highest safe rate: {budget.highest_rate:.1f} parts a second{asked}", highlight=False)
    now = "" if speed is None else f" ({speed * budget.highest_speed:.0f} mm/s, {speed:g} now)"
    console.print(f"highest safe speed: {budget.highest_speed:.2f} times today's{now}", highlight=False)
    for text in changes:
        console.print(f"change: {text}", soft_wrap=True, highlight=False)


@app.command()
def doctor(
    gpu_report: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Also run the tests and benchmarks that need a GPU, and write an archive to DIR.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine can do, what is missing, and what to do about it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edge.tools.doctor import examine

    findings = examine()
    archive = None
    if gpu_report is not None:
        from edge.tools.gpu_report import write_gpu_report

        archive = write_gpu_report(gpu_report, findings)
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "archive": archive and str(archive)}))
        return
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark = {"ok": "[green]ok", "missing": "[red]missing", "improvable": "[yellow]improvable"}[finding.status]
        table.add_row(mark, escape(f"{finding.what}: {finding.text}"
                                   + (f"\n  {finding.remedy}" if finding.remedy else "")))
    console = Console()
    console.print(table)
    if archive is not None:
        console.print(f"GPU report: {archive}", highlight=False, soft_wrap=True)

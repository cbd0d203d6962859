"""``lineside replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def replay(
    session: Annotated[Path, typer.Argument(help="The folder that `lineside record` wrote.", metavar="SESSION")],
    bundle: Annotated[Path | None,
                      typer.Option(help="Inspect with this bundle instead, and show which decisions differ.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="fp32|bf16|fp16|int8|auto",
                                                  help="As recorded unless given.")] = None,
    backend: Annotated[str | None, typer.Option(metavar="BACKEND", help="As recorded unless given.")] = None,
    out: Annotated[Path | None,
                   typer.Option(help="Picture of the parts that differ; SESSION/differences.png unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Replay a recorded session. Exit code 1 unless verdicts, scores and the bytes on the wire are the same."""
    from edge.base.console import progress_bars
    from edge.base.errors import InputError
    from edge.images.files import IMAGE_SUFFIXES, write_image
    from edge.record.replay import read_session
    from edge.record.replay import replay as play
    from edge.record.replay_sheet import draw_differences

    sheet = out or session / "differences.png"
    if sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"cannot draw {sheet}", got=f"suffix {sheet.suffix!r}",
                         expected="one of " + ", ".join(sorted(IMAGE_SUFFIXES)))
    read = read_session(session)
    with progress_bars() as progress:
        found = play(read, bundle, precision=precision, backend=backend, progress=progress)
    figures = {**found.as_json(), "sheet": str(sheet) if found.drawn else None}
    if as_json:
        print(json.dumps(figures))
    else:
        _show(figures)
    if found.drawn:
        try:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            write_image(sheet, draw_differences(found.drawn))
        except OSError as error:
            raise InputError(f"cannot write the picture {sheet}", got=error.strerror,
                             next="Give another --out.") from error
    if bundle is None and not found.equal:
        raise typer.Exit(1)


def _show(figures: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    wire = figures["wire"]
    table = Table("replay", "", title=str(figures["session"]))
    table.add_row("parts with a verdict", str(figures["parts"]))
    table.add_row("verdicts that differ", str(figures["verdicts_differ"]))
    table.add_row("scores that differ",
                  f"{figures['scores_differ']} (by {figures['largest_score_change']:.2g} at most)")
    if figures["left_out"]:
        table.add_row("[yellow]taken as recorded (no frames)", str(figures["left_out"]))
    if not figures["complete"]:
        table.add_row("[yellow]the session", "is not complete")
    if isinstance(wire, dict):
        same = "the same" if wire["equal"] else f"[red]not the same: {wire['differs']}"
        table.add_row("bytes to the PLC", f"{wire['bytes']}, {same}")
        table.add_row("outcomes that differ", str(figures["outcomes_differ"]))
        if wire["cut"]:
            table.add_row("line control killed", str(wire["cut"]))
    elif figures["bundle"] is None:
        table.add_row("bytes to the PLC", "not in the session")
    console = Console()
    console.print(table)
    differences = figures["differences"]
    assert isinstance(differences, list)
    if differences:
        rows = Table("part", "image", "recorded", "now", "score", "now")
        for one in differences[:40]:
            scores = ["-" if score is None else f"{score:.4f}" for score in one["score"]]
            rows.add_row(str(one["part"]), one["image"], *one["verdict"], *scores)
        console.print(rows)
        if len(differences) > 40:
            console.print(f"and {len(differences) - 40} more: see --json")
    if figures["sheet"]:
        console.print(f"Pictures: {figures['sheet']}", highlight=False, soft_wrap=True)

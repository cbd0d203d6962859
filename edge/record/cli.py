"""``lineside replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def replay(
    session: Annotated[Path, typer.Argument(help="What `lineside record` wrote.", metavar="SESSION")],
    bundle: Annotated[Path | None, typer.Option(help="Inspect with this bundle instead, and show the decisions that would differ.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="fp32|bf16|fp16|int8|auto", help="The recorded one unless given.")] = None,
    backend: Annotated[str | None, typer.Option(metavar="BACKEND", help="The recorded one unless given.")] = None,
    out: Annotated[Path | None, typer.Option(help="A picture of the parts that come out otherwise; differences.png in the session unless "
                                             "given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Play a session again: verdicts, scores and the bytes of the wire have to be the same. Exit code 1 where they are not."""
    from edge.base.console import progress_bars
    from edge.base.errors import InputError
    from edge.images.files import IMAGE_SUFFIXES, write_image
    from edge.record.replay import read_session
    from edge.record.replay import replay as play
    from edge.record.replay_sheet import draw_differences

    sheet = out or session / "differences.png"
    if sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"cannot draw {sheet}", got=f"suffix {sheet.suffix!r}", expected="one of " + ", ".join(sorted(IMAGE_SUFFIXES)))
    read = read_session(session)
    with progress_bars() as progress:
        found = play(read, bundle, precision=precision, backend=backend, progress=progress)
    told = {**found.as_json(), "sheet": str(sheet) if found.drawn else None}
    if as_json:
        print(json.dumps(told))
    else:
        _show(told)
    if found.drawn:
        try:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            write_image(sheet, draw_differences(found.drawn))
        except OSError as error:
            raise InputError(f"cannot write the picture {sheet}", got=error.strerror, next="Give another --out.") from error
    if bundle is None and not found.equal:
        raise typer.Exit(1)


def _show(told: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    wire = told["wire"]
    table = Table("replay", "", title=str(told["session"]))
    table.add_row("parts with a verdict", str(told["parts"]))
    table.add_row("verdicts that differ", str(told["verdicts_differ"]))
    table.add_row("scores that differ", f"{told['scores_differ']} (by {told['largest_score_change']:.2g} at most)")
    if told["left_out"]:
        table.add_row("[yellow]taken as recorded, for want of frames", str(told["left_out"]))
    if not told["complete"]:
        table.add_row("[yellow]the session", "is not complete")
    if isinstance(wire, dict):
        same = "the same" if wire["equal"] else f"[red]not the same: {wire['differs']}"
        table.add_row("bytes to the PLC", f"{wire['bytes']}, {same}")
        table.add_row("outcomes that differ", str(told["outcomes_differ"]))
        if wire["cut"]:
            table.add_row("line control killed", str(wire["cut"]))
    elif told["bundle"] is None:
        table.add_row("bytes to the PLC", "not in the session")
    console = Console()
    console.print(table)
    differences = told["differences"]
    assert isinstance(differences, list)
    if differences:
        rows = Table("part", "image", "recorded", "now", "score", "now")
        for one in differences[:40]:
            scores = ["-" if score is None else f"{score:.4f}" for score in one["score"]]
            rows.add_row(str(one["part"]), one["image"], *one["verdict"], *scores)
        console.print(rows)
        if len(differences) > 40:
            console.print(f"and {len(differences) - 40} more: see --json")
    if told["sheet"]:
        console.print(f"Pictures: {told['sheet']}", highlight=False, soft_wrap=True)

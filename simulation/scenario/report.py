"""The report of a simulation for a person: counts, the parts that differ, and the rules that do not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulation.scenario.reconcile import PartRecord, Reconciliation

MOST = 30  # parts in the table


def print_report(result: Reconciliation, report: dict[str, Any], folder: Path) -> None:
    """Print what `lineside simulate` found."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    counts = result.counts
    console.print(f"[bold]{report['scenario']}[/bold]: {report['about']}", soft_wrap=True)
    console.print(f"{counts['triggers']} triggers = {counts['passed']} passed + {counts['rejected']} rejected + "
                  f"{counts['uninspected']} uninspected {result.causes or ''}; "
                  f"the line did not take {counts['not_taken']} of {counts['fed']} parts; "
                  f"{counts['ejected']} ejected, {counts['ejected_by_failsafe']} by the PLC itself", soft_wrap=True,
                  highlight=False)
    if result.differences:
        table = Table("part", "truth", "verdict", "cause", "reject commanded", "ejected by", "difference", "why")
        for part in result.differences[:MOST]:
            table.add_row(*_cells(part))
        console.print(table)
        if len(result.differences) > MOST:
            console.print(f"... and {len(result.differences) - MOST} more, in {folder / 'report.json'}")
    for failure in result.failures[:MOST]:
        about = f"part {failure.part}: " if failure.part is not None else ""
        console.print(f"[red]{failure.rule}[/red]: {about}{failure.text}", soft_wrap=True, highlight=False)
    if report["timelines"]:
        console.print(f"{len(report['timelines'])} pictures: {folder / 'timelines'}", soft_wrap=True)
    console.print("Everything reconciles." if not result.failures
                  else f"[red]{len(result.failures)} things do NOT reconcile: see "
                  f"{folder / 'report.json'}, journal.db, plc.jsonl and line.txt there.", soft_wrap=True)


def _cells(part: PartRecord) -> list[str]:
    words = [part.truth, part.verdict, part.cause, "yes" if part.reject_commanded else None, part.ejected_by,
             part.difference, part.why]
    return [str(part.part), *(word or "-" for word in words)]


def print_virtual(figures: dict[str, Any]) -> None:
    """Print the counts of a run in virtual time."""
    from rich.console import Console
    from rich.table import Table

    table = Table("count", "",
                  title=f"{figures['parts']} parts in {figures['seconds']:.1f} s, {figures['parts_per_s']} a second; "
                  f"{figures['virtual_s'] / 3600:.1f} h of the line's time")
    for name, value in figures.items():
        if name not in ("scenario", "about", "reconciled", "parts", "seconds", "parts_per_s", "virtual_s"):
            table.add_row(name, str(value))
    console = Console()
    console.print(table)
    console.print("Every rule held after every event.")

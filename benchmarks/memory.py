#!/usr/bin/env python3
"""Measures a line's memory: resident MB of each process, after some parts and after many more.

A real `lineside run` with frames in memory, journal and PLC link; a PLC stand-in triggers parts. Memory that is kept
for each part would show as growth.

    benchmarks/memory.py --bundles DIR --parts 3000 --out memory.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from plc_load import running_line
from rich.progress import Progress
from rich.table import Table
from script import bundles_in, chosen, options, picture, run

from edge.engines.backends import get_backend

PROCESSES = ("runtime", "control", "supervisor")
LOOKS = 20


def measure(folder: Path, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The figures of one bundle."""
    choice = chosen(folder, arguments)
    task = progress.add_task(folder.name, total=LOOKS)
    with running_line(folder, precision=arguments.precision, backend=choice.backend, mode=arguments.mode) as line:
        looks = []
        for _ in range(LOOKS):
            line.play(max(1, arguments.parts // LOOKS), outstanding=3)
            looks.append(line.resident_mb())
            progress.advance(task)
    first, last = looks[0], looks[-1]
    return {"bundle": folder.name, "detector": choice.bundle.card.detector, "precision": choice.precision,
            "backend": choice.backend, "resident_mb": {name: round(last[name], 1) for name in PROCESSES},
            "growth_mb": {name: round(last[name] - first[name], 1) for name in PROCESSES},
            "total_mb": round(sum(last.values()), 1), "looks_mb": [round(sum(look.values()), 1) for look in looks]}


def draw(found: dict[str, Any], out: Path) -> None:
    """A curve for each bundle: the sum of all its processes."""
    def paint(axes: Any) -> None:
        for row in found["bundles"]:
            parts = [found["parts"] * (look + 1) / LOOKS for look in range(LOOKS)]
            axes.plot(parts, row["looks_mb"], label=f"{row['detector']}, {row['precision']}")
        axes.set_xlabel("parts")
        axes.set_ylabel("resident MB, all processes")
        axes.set_ylim(0, 1.1 * found["worst"])
        axes.legend(frameon=False)

    picture(out, 7, 4, paint)


def table(found: dict[str, Any]) -> Table:
    """A row for each bundle."""
    shown = Table("bundle", "precision", *(f"{name}, MB" for name in PROCESSES), "all, MB", "growth, MB",
                  title=f"{found['device']}, {found['parts']} parts each")
    for row in found["bundles"]:
        shown.add_row(row["bundle"], row["precision"], *(f"{row['resident_mb'][name]:.0f}" for name in PROCESSES),
                      f"{row['total_mb']:.0f}", f"{sum(row['growth_mb'].values()):+.1f}")
    return shown


def main() -> int:
    parser = options(__doc__, mode="latency")
    parser.add_argument("--parts", type=int, default=2000)
    arguments = parser.parse_args()

    def work(progress: Progress) -> dict[str, Any]:
        found = [measure(folder, arguments, progress) for folder in bundles_in(arguments.bundles)]
        return {"device": get_backend(found[0]["backend"]).device_name(),
                "worst": max(row["total_mb"] for row in found), "parts": arguments.parts, "bundles": found}

    return run("memory", arguments, work, table, draw)


if __name__ == "__main__":
    sys.exit(main())

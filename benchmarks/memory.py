#!/usr/bin/env python3
"""How much memory a line keeps: resident MB of each of its processes, after some parts and after many more.

A real `lineside run` with frames in memory, journal and link on; a stand-in for the PLC triggers parts. What the line keeps for each part
would show as growth between the two looks.

    benchmarks/memory.py --bundles DIR --parts 3000 --out memory.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from plc_load import bundles_in, running_line
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge.bundle import load_bundle
from edge.engines import device_name, pick_backend
from edge.errors import LinesideError

PROCESSES = ("runtime", "control", "supervisor")
LOOKS = 20


def measure(folder: Path, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The figures of one bundle."""
    bundle = load_bundle(folder)
    backend = pick_backend(bundle, arguments.backend, arguments.precision)
    task = progress.add_task(folder.name, total=LOOKS)
    with running_line(folder, precision=arguments.precision, backend=backend, mode=arguments.mode) as line:
        looks = []
        for _ in range(LOOKS):
            line.play(max(1, arguments.parts // LOOKS), outstanding=3)
            looks.append(line.resident_mb())
            progress.advance(task)
    first, last = looks[0], looks[-1]
    return {"bundle": folder.name, "detector": bundle.card.detector, "precision": bundle.choose(arguments.precision, backend),
            "backend": backend, "resident_mb": {name: round(last[name], 1) for name in PROCESSES},
            "growth_mb": {name: round(last[name] - first[name], 1) for name in PROCESSES},
            "total_mb": round(sum(last.values()), 1), "looks_mb": [round(sum(look.values()), 1) for look in looks]}


def draw(found: list[dict[str, Any]], parts: int, out: Path) -> None:
    """A curve for each bundle: all its processes together."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for row in found:
        axes.plot([parts * (look + 1) / LOOKS for look in range(LOOKS)], row["looks_mb"], label=f"{row['detector']}, {row['precision']}")
    axes.set_xlabel("parts")
    axes.set_ylabel("resident MB, all processes")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, required=True, help="a folder of calibrated bundles, or one bundle")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--mode", default="latency", choices=["throughput", "latency"], help="of the line, see docs/line-file.md")
    parser.add_argument("--parts", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="a picture of it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            found = [measure(folder, arguments, progress) for folder in bundles_in(arguments.bundles)]
    except LinesideError as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2
    if arguments.out:
        draw(found, arguments.parts, arguments.out)
    if arguments.json:
        print(json.dumps({"device": device_name(found[0]["backend"]), "worst": max(row["total_mb"] for row in found), "bundles": found}))
        return 0
    table = Table("bundle", "precision", *(f"{name}, MB" for name in PROCESSES), "all, MB", "growth, MB",
                  title=f"{device_name(found[0]['backend'])}, {arguments.parts} parts each")
    for row in found:
        table.add_row(row["bundle"], row["precision"], *(f"{row['resident_mb'][name]:.0f}" for name in PROCESSES), f"{row['total_mb']:.0f}",
                      f"{sum(row['growth_mb'].values()):+.1f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""How soon a line gives its first verdict: from the start of `lineside run` to the last byte of a VERDICT on the PLC's port.

A stand-in for the PLC triggers the first part as soon as the line says that it takes parts. Each bundle is started several times, in turn
with the others; the first start, which may find no cached model and cold files, is told by itself.

    benchmarks/startup.py --bundles DIR --out startup.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from plc_load import bundles_in, running_line
from rich.console import Console
from rich.progress import track
from rich.table import Table

from edge.bundle import load_bundle
from edge.engines import device_name, pick_backend
from edge.errors import LinesideError


def start_once(folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """(s until the line takes parts, s until its first verdict)."""
    with running_line(folder, precision=arguments.precision, backend=arguments.backend, mode="latency") as line:
        load = line.play(1, outstanding=1)
        if not load.inspected:
            raise SystemExit(f"startup: the first part of {folder} was not inspected")
        return line.ready_after, load.verdicts[0] - line.started


def draw(found: list[dict[str, Any]], out: Path) -> None:
    """A dot for each start, the first one apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 1.2 + 0.5 * len(found)), layout="constrained")
    for number, row in enumerate(found):
        axes.scatter(row["first_verdict_s"], [number] * len(row["first_verdict_s"]), color="#1f6f8b", label="warm" if number == 0 else None)
        axes.scatter([row["cold_s"]], [number], marker="x", color="#b9c3cc", label="first start" if number == 0 else None)
    axes.set_yticks(range(len(found)), [f"{row['detector']}, {row['precision']}" for row in found])
    axes.set_xlabel("s from the start to the first verdict")
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, required=True, help="a folder of calibrated bundles, or one bundle")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--starts", type=int, default=7, help="of each bundle, behind the first")
    parser.add_argument("--out", type=Path, help="a picture of it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        folders = bundles_in(arguments.bundles)
        times: dict[Path, list[tuple[float, float]]] = {folder: [] for folder in folders}
        for _ in track(range(arguments.starts + 1), "starting", console=Console(stderr=True), transient=True):
            for folder in folders:
                times[folder].append(start_once(folder, arguments))
        found = []
        for folder in folders:
            bundle = load_bundle(folder)
            backend = pick_backend(bundle, arguments.backend, arguments.precision)
            verdicts = [round(verdict, 3) for _, verdict in times[folder][1:]]
            found.append({"bundle": folder.name, "detector": bundle.card.detector, "precision": bundle.choose(arguments.precision, backend),
                          "backend": backend, "cold_s": round(times[folder][0][1], 3), "first_verdict_s": verdicts,
                          "ready_s": round(statistics.median(ready for ready, _ in times[folder][1:]), 3),
                          "median_s": round(statistics.median(verdicts), 3), "highest_s": max(verdicts)})
    except LinesideError as error:
        print(f"startup: {error}", file=sys.stderr)
        return 2
    worst = max(row["median_s"] for row in found)
    if arguments.out:
        draw(found, arguments.out)
    if arguments.json:
        print(json.dumps({"device": device_name(found[0]["backend"]), "worst": worst, "bundles": found}))
        return 0
    table = Table("bundle", "precision", "takes parts, s", "first verdict, s", "slowest, s", "first start, s",
                  title=f"{device_name(found[0]['backend'])}, {arguments.starts} starts each, in turn")
    for row in found:
        table.add_row(row["bundle"], row["precision"], f"{row['ready_s']:.2f}", f"{row['median_s']:.2f}", f"{row['highest_s']:.2f}",
                      f"{row['cold_s']:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

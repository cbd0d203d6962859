#!/usr/bin/env python3
"""Measures how soon a line gives its first verdict: from `lineside run` to the last byte of a VERDICT on the PLC's
port.

A PLC stand-in triggers the first part as soon as the line is ready. Each bundle is started several times, in turn with
the others. The first start, which may find neither a cached model nor cached files, is reported separately.

    benchmarks/startup.py --bundles DIR --out startup.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from plc_load import running_line
from rich.progress import Progress
from rich.table import Table
from script import INK, PALE, bundles_in, chosen, options, picture, run

from edge.engines.backends import get_backend


def start_once(folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """(time until the line is ready, time until its first verdict), in s."""
    with running_line(folder, precision=arguments.precision, backend=arguments.backend, mode="latency") as line:
        load = line.play(1, outstanding=1)
        if not load.inspected:
            raise SystemExit(f"startup: the first part of {folder} was not inspected")
        return line.ready_after, load.verdicts[0] - line.started


def draw(found: dict[str, Any], out: Path) -> None:
    """A dot for each start; the first one has another mark."""
    def paint(axes: Any) -> None:
        for number, row in enumerate(found["bundles"]):
            warm = row["first_verdict_s"]
            axes.scatter(warm, [number] * len(warm), color=INK, label="warm" if number == 0 else None)
            axes.scatter([row["cold_s"]], [number], marker="x", color=PALE, label="first start" if number == 0
                         else None)
        axes.set_yticks(range(len(found["bundles"])), [f"{row['detector']}, {row['precision']}"
                                                       for row in found["bundles"]])
        axes.set_xlabel("s from the start to the first verdict")
        axes.set_xlim(left=0)
        axes.legend(frameon=False)

    picture(out, 6, 1.2 + 0.5 * len(found["bundles"]), paint)


def table(found: dict[str, Any]) -> Table:
    """A row for each bundle."""
    shown = Table("bundle", "precision", "takes parts, s", "first verdict, s", "slowest, s", "first start, s",
                  title=f"{found['device']}, {len(found['bundles'][0]['first_verdict_s'])} starts each, in turn")
    for row in found["bundles"]:
        shown.add_row(row["bundle"], row["precision"], f"{row['ready_s']:.2f}", f"{row['median_s']:.2f}",
                      f"{row['highest_s']:.2f}", f"{row['cold_s']:.2f}")
    return shown


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--starts", type=int, default=7, help="of each bundle, after the first")
    arguments = parser.parse_args()

    def work(progress: Progress) -> dict[str, Any]:
        folders = bundles_in(arguments.bundles)
        times: dict[Path, list[tuple[float, float]]] = {folder: [] for folder in folders}
        task = progress.add_task("starting", total=(arguments.starts + 1) * len(folders))
        for _ in range(arguments.starts + 1):
            for folder in folders:
                times[folder].append(start_once(folder, arguments))
                progress.advance(task)
        found = []
        for folder in folders:
            choice = chosen(folder, arguments)
            verdicts = [round(verdict, 3) for _, verdict in times[folder][1:]]
            found.append({"bundle": folder.name, "detector": choice.bundle.card.detector, "precision": choice.precision,
                          "backend": choice.backend, "cold_s": round(times[folder][0][1], 3),
                          "first_verdict_s": verdicts,
                          "ready_s": round(statistics.median(ready for ready, _ in times[folder][1:]), 3),
                          "median_s": round(statistics.median(verdicts), 3), "highest_s": max(verdicts)})
        return {"device": get_backend(found[0]["backend"]).device_name(),
                "worst": max(row["median_s"] for row in found), "bundles": found}

    return run("startup", arguments, work, table, draw)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Compares the whole line with its bare engine: frames/s of a real `lineside run` as a share of the engine's alone.

The line has its frames in memory, and runs with journal and PLC link. A PLC stand-in keeps a fixed number of parts
waiting for their verdicts: the frames in flight, plus those whose results are collected at once (at least two). The
bare engine runs the same graph on the same backend with as many inferences in flight, on a frame that is already in its
memory. Both take turns in one run; the ratio is the median over the rounds.

    benchmarks/efficiency.py --bundles DIR --out efficiency.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from plc_load import golden_frames, running_line
from rich.progress import Progress
from rich.table import Table
from script import INK, PALE, bundles_in, chosen, options, picture, run

from edge.engines.backends import get_backend
from edge.inspection.inspector import ENGINE_TIMEOUT, Inspector, Mode
from edge.run.live_bundle import HOLD


def bare_rate(inspector: Inspector, images: int, under_way: int = 0) -> float:
    """Images/s of the engine alone with so many inferences in flight; 0: all its slots."""
    slots, running = deque(inspector._free[-under_way:]), deque[Any]()
    start = time.perf_counter()
    for _ in range(images):
        if not slots:
            slots.append(running.popleft())
            slots[0].wait(ENGINE_TIMEOUT)
        running.append(slots.popleft())
        running[-1].start(len(running[-1].input))
    for slot in running:
        slot.wait(ENGINE_TIMEOUT)
    return images * len(inspector._free[0].input) / (time.perf_counter() - start)


def measure(folder: Path, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The figures of one bundle."""
    choice = chosen(folder, arguments)
    mode: Mode = arguments.mode
    task = progress.add_task(f"{folder.name} in {choice.precision}", total=arguments.rounds)
    with Inspector(choice.bundle, precision=choice.precision, backend=choice.backend, threads=arguments.threads,
                   mode=mode) as inspector:
        inspector.group(inspector.warm_up(), HOLD)
        inspector.raw_map(golden_frames(choice.bundle)[0])  # to fill the input of the last slot
        for slot in inspector._free:
            slot.input[:] = inspector._free[-1].input[0]
        under_way = inspector.room + max(2, inspector.together)
        bare_rate(inspector, 20, inspector.room)
        images = max(30, int(arguments.seconds * bare_rate(inspector, 30, inspector.room)))
        rounds = []
        with running_line(folder, precision=choice.precision, backend=choice.backend, threads=arguments.threads,
                          mode=mode) as line:
            line.play(30, outstanding=under_way)
            for number in range(arguments.rounds):
                bare = bare_rate(inspector, images, inspector.room) if number % 2 else 0.0
                load = line.play(images, outstanding=under_way)
                if not load.inspected:
                    raise SystemExit(f"efficiency: not all parts of {folder} were inspected")
                bare = bare or bare_rate(inspector, images, inspector.room)
                rounds.append({"line_fps": round(load.rate(0.1), 2), "bare_fps": round(bare, 2)})
                progress.advance(task)
    ratios = [found["line_fps"] / found["bare_fps"] for found in rounds]
    return {"bundle": folder.name, "detector": choice.bundle.card.detector, "precision": choice.precision,
            "backend": choice.backend, "line_fps": statistics.median(found["line_fps"] for found in rounds),
            "bare_fps": statistics.median(found["bare_fps"] for found in rounds),
            "ratio": round(statistics.median(ratios), 4), "lowest": round(min(ratios), 4),
            "highest": round(max(ratios), 4), "rounds": rounds}


def draw(found: dict[str, Any], out: Path) -> None:
    """Bars: the bare engine, and the line beside it."""
    def paint(axes: Any) -> None:
        for number, row in enumerate(found["bundles"]):
            axes.bar(number - 0.2, row["bare_fps"], 0.38, color=PALE, label="bare engine" if number == 0 else None)
            axes.bar(number + 0.2, row["line_fps"], 0.38, color=INK, label="whole line" if number == 0 else None)
            axes.annotate(f"{row['ratio']:.3f}", (number + 0.2, row["line_fps"]), ha="center", va="bottom")
        axes.set_xticks(range(len(found["bundles"])), [f"{row['detector']}\n{row['precision']}"
                                                       for row in found["bundles"]])
        axes.set_ylabel("frames a second")
        axes.legend(frameon=False)

    picture(out, 1.6 + 1.3 * len(found["bundles"]), 4, paint)


def table(found: dict[str, Any]) -> Table:
    """A row for each bundle."""
    shown = Table("bundle", "precision", "line, frames/s", "bare engine, frames/s", "ratio", "lowest to highest",
                  title=f"{found['device']}, mode {found['mode']}; worst {found['worst']:.3f}")
    for row in found["bundles"]:
        shown.add_row(row["bundle"], row["precision"], f"{row['line_fps']:.1f}", f"{row['bare_fps']:.1f}",
                      f"{row['ratio']:.3f}", f"{row['lowest']:.3f} to {row['highest']:.3f}")
    return shown


def main() -> int:
    parser = options(__doc__, mode="throughput")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0: all cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    arguments = parser.parse_args()

    def work(progress: Progress) -> dict[str, Any]:
        found = [measure(folder, arguments, progress) for folder in bundles_in(arguments.bundles)]
        return {"device": get_backend(found[0]["backend"]).device_name(), "mode": arguments.mode,
                "worst": min(row["ratio"] for row in found), "bundles": found}

    return run("efficiency", arguments, work, table, draw)


if __name__ == "__main__":
    sys.exit(main())

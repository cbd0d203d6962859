#!/usr/bin/env python3
"""Measures how fast a line may run: the highest rate of parts without a late verdict, and the times near that rate.

A real `lineside run` with frames in memory, journal (without pictures: most tiled mosaics are rejected) and PLC link; a
PLC stand-in triggers parts at an even rate. A rate is held if every verdict of a turn meets the deadline, --deadline-ms
after the trigger. The highest rate is found by bisection. Times are from a longer turn at 90 % of it, from the first
byte of a TRIGGER to the last byte of its VERDICT; if a part is late there, the rate is lowered by 10 % until none is.
All this for each bundle with frames of half, once and twice its own size, with 2 and 8 tiles, and with 1 to 4 cameras.

    benchmarks/line_speed.py --bundles DIR --out line_speed.png
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from plc_load import LEAD_MS, enough, golden_frames, mosaics, running_line, tiled_copy
from rich.progress import Progress
from rich.table import Table
from script import INK, bundles_in, chosen, options, picture, run

from edge.engines.backends import get_backend
from edge.images.frames import Frame

STEPS = 5  # of the bisection, which end within a thirtieth
TRIES = 6  # longer turns, each 10 % slower than the one before
PERCENTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p99.9_ms": 0.999, "max_ms": 1.0}
TILES = ((1, 2), (2, 4))  # rows, columns


@dataclass(frozen=True)
class Case:
    """One way to run a bundle."""

    name: str
    frames: list[Frame]
    cameras: int = 1
    tiles: tuple[int, int] | None = None


def cases(bundle: Any, wanted: list[str]) -> Iterator[Case]:
    """The cases of a bundle: frame sizes, tiles, cameras."""
    own = golden_frames(bundle)
    for scale in (0.5, 1.0, 2.0):
        size = (round(own[0].shape[1] * scale), round(own[0].shape[0] * scale))
        frames = own if scale == 1 else [np.atleast_3d(cv2.resize(f, size,
                                                                  interpolation=cv2.INTER_AREA)).astype(np.uint8)
                                         for f in own]
        if "sizes" in wanted or scale == 1:
            yield Case(f"{size[0]}x{size[1]} px", frames)
    if "tiles" in wanted:
        for rows, columns in TILES:
            frames = mosaics(own, rows, columns)
            yield Case(f"{rows * columns} tiles, {frames[0].shape[1]}x{frames[0].shape[0]} px", frames,
                       tiles=(rows, columns))
    if "cameras" in wanted:
        for cameras in (2, 3, 4):
            yield Case(f"{cameras} cameras", own, cameras)


@contextmanager
def prepared(folder: Path, case: Case) -> Iterator[Path]:
    """The bundle for a case; a tiled copy, if the case has tiles."""
    if case.tiles is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lineside-tiled-") as name:
        yield tiled_copy(folder, Path(name) / "bundle")


def measure_case(folder: Path, case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """The highest rate of a case, and the times at 90 % of it."""
    choice = chosen(folder, arguments)
    with prepared(folder, case) as used, running_line(
            used, frames=case.frames, precision=choice.precision, backend=choice.backend, mode=arguments.mode,
            cameras=case.cameras, pictures=False, travel_ms=arguments.deadline_ms + LEAD_MS) as line:
        line.play(10, outstanding=2)
        warm = line.play(20, outstanding=6).rate()
        outstanding = enough(warm, arguments.deadline_ms)
        capacity = line.play(max(20, int(arguments.seconds * warm)), outstanding=outstanding).rate()
        low, high = 0.0, 1.05 * capacity
        for step in range(STEPS):
            rate = 0.9 * capacity if step == 0 else (low + high) / 2
            held = line.play(max(20, int(arguments.seconds * rate)), rate=rate).inspected
            low, high = (rate, high) if held else (low, rate)
        load = None
        for number in range(TRIES if low else 0):
            low *= 0.9 if number else 1  # the machine was faster in the short turns
            load = line.play(max(20, int(3 * arguments.seconds * 0.9 * low)), rate=0.9 * low)
            if load.inspected:
                break
    times = sorted(load.waits) if load else []
    found = {name: round(times[min(len(times) - 1, int(share * len(times)))], 2) if times else None
             for name, share in PERCENTILES.items()}
    return {"case": case.name, "cameras": case.cameras, "tiles": case.tiles and case.tiles[0] * case.tiles[1],
            "parts_per_s": round(low, 2), "frames_per_s": round(low * case.cameras, 2),
            "at_parts_per_s": round(0.9 * low, 2),
            "missed": sum(code not in (0, 1) for code in load.codes) if load else None, "parts": len(times), **found}


def draw(found: dict[str, Any], out: Path) -> None:
    """Left: frames/s of each case; right: its times."""
    names = [row["case"] for row in found["bundles"][0]["cases"]]

    def paint(panels: Any) -> None:
        for number, row in enumerate(found["bundles"]):
            offset = 0.8 * (number + 0.5) / len(found["bundles"]) - 0.4
            places = np.arange(len(names)) + offset
            panels[0].barh(places, [case["frames_per_s"] for case in row["cases"]], 0.7 / len(found["bundles"]),
                           label=f"{row['detector']}, {row['precision']}")
            for place, case in zip(places, row["cases"], strict=True):
                if case["p50_ms"] is None:
                    continue
                panels[1].plot([case["p50_ms"], case["max_ms"]], [place, place], color="#b9c3cc")
                panels[1].scatter([case["p50_ms"], case["p99_ms"], case["max_ms"]], [place] * 3, s=12, color=INK)
        panels[0].set_yticks(range(len(names)), names)
        panels[1].set_yticks(range(len(names)), [])
        panels[0].set_xlabel("frames/s without a late verdict")
        panels[1].set_xlabel("ms from trigger to verdict at 90 % of that: p50, p99, max")
        panels[0].legend(frameon=False, fontsize=8)

    picture(out, 12, 1.5 + 0.3 * len(names) * max(1, len(found["bundles"]) / 2), paint, panels=2)


def table(found: dict[str, Any]) -> Table:
    """A row for each case of each bundle."""
    shown = Table("bundle", "case", "parts/s", "frames/s", "p50, ms", "p99, ms", "p99.9, ms", "max, ms", "missed",
                  title=f"{found['device']}, mode {found['mode']}, deadline {found['deadline_ms']} ms; times at 90 % "
                  "of the rate")
    for row in found["bundles"]:
        for case in row["cases"]:
            shown.add_row(f"{row['bundle']} {row['precision']}", case["case"], f"{case['parts_per_s']:.1f}",
                          f"{case['frames_per_s']:.1f}",
                          *("-" if case[name] is None else f"{case[name]:.1f}" for name in PERCENTILES),
                          f"{case['missed']} of {case['parts']}")
    return shown


def main() -> int:
    parser = options(__doc__, mode="throughput")
    parser.add_argument("--deadline-ms", type=int, default=500, help="from a trigger to its verdict")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn; three times that for the times")
    parser.add_argument("--cases", default="sizes,tiles,cameras", help="beside the bundle's own size")
    arguments = parser.parse_args()

    def work(progress: Progress) -> dict[str, Any]:
        found = []
        for folder in bundles_in(arguments.bundles):
            choice = chosen(folder, arguments)
            wanted = list(cases(choice.bundle, arguments.cases.split(",")))
            task = progress.add_task(folder.name, total=len(wanted))
            rows = []
            for case in wanted:
                rows.append(measure_case(folder, case, arguments))
                progress.advance(task)
            found.append({"bundle": folder.name, "detector": choice.bundle.card.detector, "precision": choice.precision,
                          "backend": choice.backend, "cases": rows})
        return {"device": get_backend(found[0]["backend"]).device_name(), "mode": arguments.mode,
                "deadline_ms": arguments.deadline_ms, "bundles": found}

    return run("line_speed", arguments, work, table, draw)


if __name__ == "__main__":
    sys.exit(main())

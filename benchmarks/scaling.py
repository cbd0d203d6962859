#!/usr/bin/env python3
"""Measures what larger frames and more cameras cost: ms/frame against area, in tiles, and frames/s of 1 to 4 cameras.

A real `lineside run` with frames in memory, journal and PLC link, always with as many parts in flight as it accepts.
The frames are mosaics of the bundle's golden parts, sized for a whole number of overlapping tiles. Nearly all of them
are rejected, so no pictures of rejects are kept. R^2 belongs to the straight line of ms against area. The rate of
several cameras is a share of one camera's, the median over the rounds, in turn.

    benchmarks/scaling.py --bundles DIR --out scaling.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from plc_load import golden_frames, mosaics, running_line, tiled_copy
from rich.progress import Progress
from rich.table import Table
from script import bundles_in, chosen, options, picture, run

from edge.engines.backends import get_backend

GRIDS = ((1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (3, 4), (4, 4))  # rows, columns of tiles
CAMERAS = (1, 2, 3, 4)
TRAVEL_MS = 10_000  # long enough for sixteen tiles of a slow network


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Slope, intercept and R^2 of the least-squares line."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + intercept)
    return float(slope), float(intercept), 1 - float((rest**2).sum() / ((np.asarray(y) - np.mean(y)) ** 2).sum())


def measure(folder: Path, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The figures of one bundle."""
    choice = chosen(folder, arguments)
    own = golden_frames(choice.bundle)
    task = progress.add_task(folder.name, total=arguments.rounds * (len(GRIDS) + len(CAMERAS)))
    cost: dict[tuple[int, int], list[float]] = {grid: [] for grid in GRIDS}
    fps: dict[int, list[float]] = {cameras: [] for cameras in CAMERAS}

    def rate(used: Path, frames: Any, cameras: int = 1) -> float:
        with running_line(used, frames=frames, precision=choice.precision, backend=choice.backend, mode=arguments.mode,
                          cameras=cameras, pictures=False, travel_ms=TRAVEL_MS) as line:
            warm = line.play(12, outstanding=4).rate()
            load = line.play(max(12, int(arguments.seconds * warm)), outstanding=6)
            if not load.inspected:
                raise SystemExit(f"scaling: not all parts of {folder} were inspected")
        progress.advance(task)
        return load.rate()

    with tempfile.TemporaryDirectory(prefix="lineside-tiled-") as name:
        tiled = tiled_copy(folder, Path(name) / "bundle")
        for number in range(arguments.rounds):
            for grid in GRIDS if number % 2 else reversed(GRIDS):
                cost[grid].append(1000 / rate(tiled, mosaics(own, *grid)))
            for cameras in CAMERAS if number % 2 else reversed(CAMERAS):
                fps[cameras].append(cameras * rate(folder, own, cameras))
    areas = [float(np.prod(mosaics(own[:1], *grid)[0].shape[:2])) / 1e6 for grid in GRIDS]
    ms = [statistics.median(cost[grid]) for grid in GRIDS]
    slope, intercept, r2 = fit_line(areas, ms)
    shares = {cameras: statistics.median(a / b for a, b in zip(fps[cameras], fps[1], strict=True))
              for cameras in CAMERAS}
    return {"bundle": folder.name, "detector": choice.bundle.card.detector, "precision": choice.precision,
            "backend": choice.backend, "areas_mpx": [round(area, 4) for area in areas],
            "tiles": [rows * columns for rows, columns in GRIDS], "ms_per_frame": [round(value, 3) for value in ms],
            "ms_per_mpx": round(slope, 3), "ms_per_frame_alone": round(intercept, 3), "r2": round(r2, 5),
            "cameras_fps": {cameras: round(statistics.median(fps[cameras]), 2) for cameras in CAMERAS},
            "cameras_share": {cameras: round(shares[cameras], 4) for cameras in CAMERAS}}


def draw(found: dict[str, Any], out: Path) -> None:
    """Left: cost against area, with its straight line; right: the rate of several cameras."""
    def paint(panels: Any) -> None:
        for row in found["bundles"]:
            dots = panels[0].scatter(row["areas_mpx"], row["ms_per_frame"], s=16,
                                     label=f"{row['detector']}, {row['precision']}: R² {row['r2']:.4f}")
            x = np.array([0, max(row["areas_mpx"])])
            panels[0].plot(x, row["ms_per_mpx"] * x + row["ms_per_frame_alone"], color=dots.get_facecolor()[0],
                           linewidth=1)
            panels[1].plot(list(row["cameras_share"]), list(row["cameras_share"].values()), marker="o",
                           label=row["detector"])
        panels[0].set_xlabel("area of a frame, megapixels")
        panels[0].set_ylabel("ms/frame")
        panels[0].set_ylim(bottom=0)
        panels[1].set_xlabel("cameras")
        panels[1].set_ylabel("frames a second of all, as a share of one camera's")
        panels[1].set_xticks(CAMERAS)
        panels[1].set_ylim(0, 1.2)
        for each in panels:
            each.legend(frameon=False, fontsize=8)

    picture(out, 12, 4.5, paint, panels=2)


def table(found: dict[str, Any]) -> Table:
    """A row for each bundle."""
    shown = Table("bundle", "precision", "ms/frame and megapixel", "ms/frame beside", "R²",
                  *(f"{n} cameras, frames/s" for n in CAMERAS), "four against one",
                  title=f"{found['device']}, mode {found['mode']}")
    for row in found["bundles"]:
        shown.add_row(row["bundle"], row["precision"], f"{row['ms_per_mpx']:.1f}", f"{row['ms_per_frame_alone']:.2f}",
                      f"{row['r2']:.4f}", *(f"{row['cameras_fps'][n]:.1f}" for n in CAMERAS),
                      f"{row['cameras_share'][4]:.3f}")
    return shown


def main() -> int:
    parser = options(__doc__, mode="throughput")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    arguments = parser.parse_args()

    def work(progress: Progress) -> dict[str, Any]:
        found = [measure(folder, arguments, progress) for folder in bundles_in(arguments.bundles)]
        return {"device": get_backend(found[0]["backend"]).device_name(), "mode": arguments.mode,
                "r2": min(row["r2"] for row in found), "four_cameras": min(row["cameras_share"][4] for row in found),
                "bundles": found}

    return run("scaling", arguments, work, table, draw)


if __name__ == "__main__":
    sys.exit(main())

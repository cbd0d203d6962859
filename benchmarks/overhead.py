#!/usr/bin/env python3
"""Measures what a frame costs outside the engine: preparing it, filtering its map, score, blobs and verdict.

At the size that the network sees: ms/frame beside the engine's own time, over golden parts, nine good ones for each
one with an artificial defect. In tiles, at 2448x2048 px: a frame's time, several in a row as on a line, against the
same number of inferences by the engine alone, with as many under way, in turn.

    benchmarks/overhead.py --bundles DIR --out overhead.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from efficiency import bare_rate
from plc_load import golden_frames, mosaics, tiled_copy
from rich.progress import Progress
from rich.table import Table
from script import INK, PALE, bundles_in, chosen, options, picture, run

from edge.bundle.bundle import load_bundle
from edge.engines.backends import get_backend
from edge.images.maps import MapArray
from edge.inspection.golden import read_golden
from edge.inspection.inspector import Inspector

LARGE = (2048, 2448)  # height, width
IN_A_ROW = 3  # large frames, of which two are in flight as on a line
GOOD = 9  # good frames for each one with a defect


class Watch:
    """A slot that times its inferences. Starting one counts, because the engine's threads then take the cores."""

    def __init__(self, slot: Any) -> None:
        self._slot, self.input, self.waited = slot, slot.input, 0.0

    def start(self, n: int) -> None:
        start = time.perf_counter()
        self._slot.start(n)
        self.waited += time.perf_counter() - start

    def wait(self, timeout: float) -> MapArray:
        start = time.perf_counter()
        maps: MapArray = self._slot.wait(timeout)
        self.waited += time.perf_counter() - start
        return maps

    def release(self) -> None:
        self._slot.release()


def measure_small(folder: Path, arguments: argparse.Namespace) -> list[float]:
    """ms/frame outside the engine, at the network's own size."""
    choice = chosen(folder, arguments)
    threshold = choice.threshold
    parts, frames, _ = read_golden(choice.bundle)
    good, bad = ([frame for part, frame in zip(parts, frames, strict=True) if (part.kind == "good") is wanted]
                 for wanted in (True, False))
    frames = [frame for number in range(len(bad)) for frame in [*(good[(GOOD * number + i) % len(good)]
                                                                  for i in range(GOOD)), bad[number]]]
    if choice.bundle.card.frames.colour:
        frames = [np.repeat(frame, 3 // frame.shape[2], axis=2) for frame in frames]
    times = []
    with Inspector(choice.bundle, precision=choice.precision, backend=choice.backend) as inspector:
        watches = [Watch(slot) for slot in inspector._free]
        inspector._free[:] = watches
        for number in range(arguments.frames + 20):
            before, start = watches[0].waited, time.perf_counter()
            inspector.inspect(frames[number % len(frames)], threshold)
            times.append(1000 * (time.perf_counter() - start - (watches[0].waited - before)))
    return sorted(times[20:])


def measure_tiles(folder: Path, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The time of large frames in tiles compared with the engine's alone."""
    choice = chosen(folder, arguments)
    own = golden_frames(choice.bundle)
    rows, columns = (-(-LARGE[axis] // (own[0].shape[axis] * 7 // 8)) for axis in (0, 1))
    frame = np.ascontiguousarray(mosaics(own, rows, columns)[0][:LARGE[0], :LARGE[1]])
    task = progress.add_task(f"{folder.name} in tiles", total=arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="lineside-tiled-") as name:
        tiled = load_bundle(tiled_copy(folder, Path(name) / "bundle"))
        threshold = tiled.calibrated_threshold(choice.precision, choice.backend).value
        with Inspector(tiled, precision=choice.precision, backend=choice.backend, mode="latency") as inspector:
            inspector.inspect(frame, threshold)  # makes rule and tiles, and fills all inputs
            tiles = inspector.check(frame)[1]
            assert tiles is not None
            ratios, seconds = [], []
            for number in range(arguments.rounds):
                images = IN_A_ROW * len(tiles)
                bare = len(tiles) / bare_rate(inspector, images) if number % 2 else 0.0
                start, under_way = time.perf_counter(), [inspector.start(frame)]
                for _ in range(IN_A_ROW - 1):
                    under_way.append(inspector.start(frame))
                    inspector.finish(under_way.pop(0), threshold)
                inspector.finish(under_way.pop(), threshold)
                seconds.append((time.perf_counter() - start) / IN_A_ROW)
                bare = bare or len(tiles) / bare_rate(inspector, images)
                ratios.append(seconds[-1] / bare)
                progress.advance(task)
    return {"frame": f"{frame.shape[1]}x{frame.shape[0]}", "tiles": len(tiles),
            "ms_per_frame": round(1000 * statistics.median(seconds), 1),
            "over_inference": round(statistics.median(ratios) - 1, 4)}


def measure(folder: Path, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The figures of one bundle."""
    choice = chosen(folder, arguments)
    times = measure_small(folder, arguments)
    found = {name: round(times[min(len(times) - 1, int(share * len(times)))], 3)
             for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p99.9_ms", 0.999), ("max_ms", 1.0))}
    return {"bundle": folder.name, "detector": choice.bundle.card.detector, "precision": choice.precision,
            "backend": choice.backend, "input": f"{choice.bundle.card.input.width}x{choice.bundle.card.input.height}",
            **found, "times_ms": [round(value, 4) for value in times[:: max(1, len(times) // 200)]],
            "in_tiles": measure_tiles(folder, arguments, progress)}


def draw(found: dict[str, Any], out: Path) -> None:
    """Left: the distribution of ms/frame; right: what tiles cost in addition to their inference."""
    def paint(panels: Any) -> None:
        for row in found["bundles"]:
            shares = np.linspace(0, 1, len(row["times_ms"]))
            panels[0].plot(row["times_ms"], shares, label=f"{row['detector']}, {row['precision']}")
        panels[0].set_xlabel("ms/frame outside the engine")
        panels[0].set_ylabel("share of frames")
        panels[0].set_xlim(0, 2.5)
        panels[0].legend(frameon=False, fontsize=8)
        names = [row["detector"] for row in found["bundles"]]
        panels[1].bar(names, [100 * row["in_tiles"]["over_inference"] for row in found["bundles"]], color=INK)
        panels[1].axhline(10, color=PALE)
        panels[1].set_ylabel("% over the tiles' inference")

    picture(out, 11, 4, paint, panels=2)


def table(found: dict[str, Any]) -> Table:
    """A row for each bundle."""
    shown = Table("bundle", "precision", "input", "p50, ms", "p99, ms", "p99.9, ms", "max, ms", "tiles", "ms/frame",
                  "over inference", title=f"{found['device']}; outside the engine")
    for row in found["bundles"]:
        tiles = row["in_tiles"]
        shown.add_row(row["bundle"], row["precision"], row["input"],
                      *(f"{row[f'{name}_ms']:.2f}" for name in ("p50", "p99", "p99.9", "max")),
                      f"{tiles['tiles']} of {tiles['frame']}", f"{tiles['ms_per_frame']:.0f}",
                      f"{tiles['over_inference']:+.1%}")
    return shown


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--frames", type=int, default=2000, help="at the network's own size")
    parser.add_argument("--rounds", type=int, default=7, help="of large frames")
    arguments = parser.parse_args()

    def work(progress: Progress) -> dict[str, Any]:
        found = [measure(folder, arguments, progress) for folder in bundles_in(arguments.bundles)]
        return {"device": get_backend(found[0]["backend"]).device_name(), "p50_ms": max(row["p50_ms"] for row in found),
                "p99_ms": max(row["p99_ms"] for row in found),
                "over_inference": max(row["in_tiles"]["over_inference"] for row in found), "bundles": found}

    return run("overhead", arguments, work, table, draw)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Measures how fast each precision of a bundle is, and its accuracy on labelled images: all in turn, image by image.

Speed is the ratio of the median time in float32 to that in the precision, both from this run. Precisions that failed
the gate are measured as well, and marked.

    benchmarks/precision.py leather-bundle tile-bundle
    benchmarks/precision.py leather-bundle --data leather --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from calib.metrics import evaluate
from edge.base.errors import LinesideError
from edge.bundle.bundle import Bundle, load_bundle
from edge.engines.backends import BACKEND_HELP, get_backend
from edge.inspection.choice import pick_backend
from edge.inspection.golden import read_golden
from edge.inspection.inspector import Inspector

WARM_UP = 5


def time_in_turn(bundle: Bundle, precisions: list[str], backend: str, rounds: int,
                 threads: int) -> dict[str, list[float]]:
    """ms of each round's inference in each precision, without post-filter and rule."""
    frames = read_golden(bundle)[1]
    inspectors = {name: Inspector(bundle, precision=name, backend=backend, threads=threads) for name in precisions}
    times: dict[str, list[float]] = {name: [] for name in precisions}
    for number in track(range(WARM_UP + rounds), f"timing {bundle.folder}", console=Console(stderr=True),
                        transient=True):
        for name, inspector in inspectors.items():
            start = time.perf_counter()
            inspector.raw_map(frames[number % len(frames)])
            if number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
    for inspector in inspectors.values():
        inspector.close()
    return times


def measure(folder: Path, data: Path | None, backend: str, rounds: int, threads: int) -> dict[str, Any]:
    """The figures of one bundle."""
    bundle = load_bundle(folder)
    known = ["fp32", *(name for name in bundle.card.precisions if name != "fp32")]
    precisions = [name for name in known if get_backend(backend).can_run(name, bundle.graph_sha256(name))]
    times = time_in_turn(bundle, precisions, backend, rounds, threads)
    base = float(np.median(times["fp32"]))
    rows = {}
    for name in precisions:
        p50, p99, most = (float(v) for v in np.percentile(times[name], (50, 99, 100)))
        rows[name] = {"offered": name in bundle.offered(), "p50_ms": round(p50, 3), "p99_ms": round(p99, 3),
                      "max_ms": round(most, 3), "times_as_fast": round(base / p50, 3)}
        if data is not None:
            figures = evaluate(bundle, data, name, backend)  # type: ignore[arg-type]
            rows[name] |= {"image_auroc": figures.image_auroc, "pixel_auroc": figures.pixel_auroc,
                           "aupro": figures.aupro}
    return {"bundle": str(folder), "detector": bundle.card.detector, "auto": bundle.choose("auto", backend),
            "precisions": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="quantised bundles")
    parser.add_argument("--data", type=Path, help="labelled images (MVTec AD layout), to measure accuracy too")
    parser.add_argument("--rounds", type=int, default=100, help="images in each precision")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0: all cores")
    parser.add_argument("--backend", default="openvino", help=BACKEND_HELP)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        backend = pick_backend(load_bundle(arguments.bundles[0]), arguments.backend)
        found = [measure(folder, arguments.data, backend, arguments.rounds, arguments.threads)
                 for folder in arguments.bundles]
    except LinesideError as error:
        print(f"precision: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({"device": get_backend(backend).device_name(), "threads": arguments.threads
                          or len(os.sched_getaffinity(0)), "rounds": arguments.rounds, "bundles": found}))
        return 0
    table = Table("bundle", "precision", "offered", "p50 ms", "p99 ms", "max ms", "times as fast", "image AUROC",
                  "pixel AUROC", "AUPRO",
                  title=f"{get_backend(backend).device_name()}, {arguments.rounds} images each, in turn")
    for bundle in found:
        for name, row in bundle["precisions"].items():
            accuracy = ["-" if row.get(key) is None else f"{row[key]:.4f}"
                        for key in ("image_auroc", "pixel_auroc", "aupro")]
            table.add_row(bundle["bundle"], name, "yes" if row["offered"] else "no", f"{row['p50_ms']:.1f}",
                          f"{row['p99_ms']:.1f}", f"{row['max_ms']:.1f}", f"{row['times_as_fast']:.2f}", *accuracy)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

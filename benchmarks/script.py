"""What the benchmarks of a line share: options, bundles, pictures, and a table or JSON on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge.base.errors import InputError, LinesideError
from edge.bundle.bundle import load_bundle
from edge.engines.backends import BACKEND_HELP
from edge.inspection.choice import Choice, choose

INK, PALE = "#1f6f8b", "#b9c3cc"


def options(about: str | None, *, mode: str | None = None, backend: bool = True) -> argparse.ArgumentParser:
    """A parser with the shared options. mode: the default of --mode; None: no such option."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, required=True, help="a folder of calibrated bundles, or one bundle")
    parser.add_argument("--precision", default="auto",
                        help="fp32, fp16, int8, bf16, or auto: the fastest that is offered")
    if backend:
        parser.add_argument("--backend", default="auto", help=BACKEND_HELP)
    if mode is not None:
        parser.add_argument("--mode", default=mode, choices=["throughput", "latency"],
                            help="of the line, see docs/line-file.md")
    parser.add_argument("--out", type=Path, help="write a picture to this file")
    parser.add_argument("--json", action="store_true", help="print figures as JSON instead of a table")
    return parser


def bundles_in(folder: Path) -> list[Path]:
    """The bundles in a folder, or the folder itself if it is one."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in [folder, *inside] if (path / "model" / "model.toml").is_file()]
    if not found:
        raise InputError(f"no bundle in {folder}",
                         expected="folders with model/model.toml, or one that is such a folder")
    return found


def chosen(folder: Path, arguments: argparse.Namespace) -> Choice:
    """A bundle, with the precision and the backend that the options name."""
    return choose(load_bundle(folder), arguments.precision, arguments.backend)


def run(name: str, arguments: argparse.Namespace, work: Callable[[Progress], dict[str, Any]],
        table: Callable[[dict[str, Any]], Table], draw: Callable[[dict[str, Any], Path], None]) -> int:
    """Do the work, with progress on standard error, and show the figures. Returns the exit code."""
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            found = work(progress)
    except LinesideError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    if arguments.out:
        draw(found, arguments.out)
    if arguments.json:
        print(json.dumps(found))
    else:
        Console().print(table(found))
    return 0


def picture(out: Path, width: float, height: float, paint: Callable[[Any], None], panels: int = 1) -> None:
    """Draw axes (or a list of them side by side) and save them; width and height in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(width, height), layout="constrained", squeeze=False)
    paint(axes[0, 0] if panels == 1 else list(axes[0]))
    for each in axes[0]:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)

"""``lineside inspect``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.engines.options import BACKEND, PRECISION

if TYPE_CHECKING:
    from edge.inspection.inspector import Inspector

app = typer.Typer()


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", metavar="IMAGE...")],
    out: Annotated[Path, typer.Option(help="Folder for the overlay pictures.")],
    precision: PRECISION = "fp32",
    backend: BACKEND = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Give a verdict on images and draw what was found."""
    from edge.base.console import progress_bar
    from edge.base.errors import InputError
    from edge.bundle.bundle import load_bundle
    from edge.images.files import list_images
    from edge.inspection.choice import choose
    from edge.inspection.inspector import Inspector

    chosen = choose(load_bundle(bundle), precision, backend)
    threshold = chosen.threshold_if_any
    paths = [path for given in images for path in (list_images(given) if given.is_dir() else [given])]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write overlays to {out}", got=error.strerror, expected="a writable folder") from error
    results: list[dict[str, Any]] = []
    failed = 0
    overlays = [out / f"{name}-verdict.png" for name in _names(paths)]  # never the name of an image that is inspected
    with (Inspector(chosen.bundle, precision=chosen.precision, backend=chosen.backend) as inspector,
          progress_bar("inspecting") as progress):
        for done, (path, overlay) in enumerate(zip(paths, overlays, strict=True), 1):
            try:
                results.append(_inspect_one(inspector, path, threshold, overlay))
            except InputError as error:
                failed += 1
                print(f"lineside: {error}" if str(path) in str(error) else f"lineside: {path}: {error}",
                      file=sys.stderr)
            except OSError as error:
                raise InputError(f"cannot write overlays to {out}", got=error.strerror,
                                 expected="a folder with room") from error
            progress(done, len(paths))
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        _print_verdicts(results, bundle, threshold is None)
    if failed:
        raise InputError(f"{failed} of {len(paths)} images could not be inspected", next="The messages above say why.")


def _names(paths: list[Path]) -> list[str]:
    """A name for each overlay: folder and file, numbered where two images would share one."""
    names: list[str] = []
    for path in paths:
        name = "-".join(part for part in path.with_suffix("").parts[-2:] if part.strip("./"))
        names.append(name if name not in names else f"{name}~{len(names)}")
    return names


def _inspect_one(inspector: Inspector, path: Path, threshold: float | None, overlay: Path) -> dict[str, Any]:
    from edge.images.files import read_image, write_image
    from edge.inspection.overlay import draw_overlay

    frame = read_image(path)
    inspection = inspector.inspect(frame, threshold)
    write_image(overlay, draw_overlay(frame, inspection, path.name))
    return {
        "image": str(path), "verdict": None if inspection.verdict is None else inspection.verdict.value,
        "score": inspection.score, "threshold": inspection.threshold,
        "blobs": [asdict(blob) for blob in inspection.blobs], "overlay": str(overlay),
    }


def _print_verdicts(results: list[dict[str, Any]], bundle: Path, uncalibrated: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "verdict", "score", "threshold", "blobs", "largest blob")
    for row in results:
        colour = {"REJECT": "[red]REJECT", "PASS": "[green]PASS", None: "-"}[row["verdict"]]
        blob = row["blobs"][0] if row["blobs"] else None
        largest = "" if blob is None else f"{blob['area_px']:g} px at {blob['box'][0]},{blob['box'][1]}"
        if blob is not None and blob["area_mm2"] is not None:
            largest += f", {blob['area_mm2']:g} mm2"
        threshold = "-" if row["threshold"] is None else f"{row['threshold']:.4f}"
        name = "/".join(Path(row["image"]).parts[-2:])
        table.add_row(name, colour, f"{row['score']:.4f}", threshold, str(len(row["blobs"])), largest)
    console = Console()
    console.print(table)
    if results:
        console.print(f"Pictures: {Path(results[0]['overlay']).parent}", highlight=False, soft_wrap=True)
    if uncalibrated:
        print(f"No verdict without a threshold. Next: lineside calibrate {bundle}")

"""``lineside export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run that `lineside fit` wrote.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; must not exist yet.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Turn a run into a bundle for the line, after proving its graph against torch."""
    from edge.extras import need

    need("train", "torch", "onnx", "onnxruntime", "onnxscript")
    from export.onnx import export_run

    bundle, difference = export_run(run, out)
    size = sum(file.stat().st_size for file in (out / "model").iterdir())
    if as_json:
        print(json.dumps({"bundle": str(out), "detector": bundle.card.detector, "parity": difference, "bytes": size}))
        return
    print(f"{out}: {bundle.card.detector}, {size / 1e6:.1f} MB; OpenVINO and torch differ by {difference:.1e} of the map's range.")
    print(f"Next: lineside calibrate {out}")

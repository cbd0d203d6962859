"""``lineside export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The bundle to write; must not exist yet.")],
    run: Annotated[Path | None, typer.Argument(help="The run that `lineside fit` wrote; or give --torch or --onnx.")] = None,
    torch_factory: Annotated[str | None, typer.Option("--torch", metavar="FILE.py:FACTORY", help="A function that returns a network of "
                                                      "your own: normalised images [N, C, H, W] -> map [N, 1, h, w].")] = None,
    onnx_model: Annotated[Path | None, typer.Option("--onnx", metavar="MODEL.onnx", help="The same as an ONNX graph.")] = None,
    data: Annotated[Path | None, typer.Option(help="Good parts that your own network was not trained on.")] = None,
    size: Annotated[str | None, typer.Option(help="Your own network's input in px, 256 or HEIGHTxWIDTH; the graph's, or 256.")] = None,
    channels: Annotated[int, typer.Option(help="Your own network's input: 1 grey, 3 colour; or the graph's.")] = 3,
    mean: Annotated[str, typer.Option(help="Its normalisation: (values in 0..1 - mean) / std.")] = "0",
    std: Annotated[str, typer.Option(help="One number, or one for each channel with commas.")] = "1",
    post_filter: Annotated[str, typer.Option(help="Its post-filter, as in decision.toml.")] = "mean:5,threshold",
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Turn a run, or a network of your own, into a bundle for the line, after proving its graph against the network."""
    from edge.errors import InputError
    from edge.extras import need

    need("train", "torch", "onnx", "onnxruntime", "onnxscript")
    from edge.console import progress_bar
    from export.foreign import export_foreign
    from export.onnx import export_run

    given = [source for source in (run, torch_factory, onnx_model) if source is not None]
    if len(given) != 1:
        raise InputError("one network is exported at a time", got=", ".join(map(str, given)) or "none", expected="a run, --torch or --onnx")
    if run is not None:
        if data is not None:
            raise InputError("a run knows its images", got=f"--data {data}", expected="no --data, which is for --torch and --onnx")
        bundle, difference = export_run(run, out)
    else:
        if data is None:
            raise InputError("a network of your own needs good parts to be proved on", got="no --data",
                             expected="--data DIR with good images that it was not trained on")
        if channels not in (1, 3):
            raise InputError("--channels does not fit a camera", got=channels, expected="1 or 3")
        with progress_bar("reading good parts") as progress:
            bundle, difference = export_foreign(
                out, data, torch_factory=torch_factory, onnx_model=onnx_model, size=_size(size), channels=channels, mean=mean, std=std,
                post_filter=post_filter, progress=progress)
    size_bytes = sum(file.stat().st_size for file in (out / "model").rglob("*") if file.is_file())
    if as_json:
        print(json.dumps({"bundle": str(out), "detector": bundle.card.detector, "parity": difference, "bytes": size_bytes}))
        return
    print(f"{out}: {bundle.card.detector}, {size_bytes / 1e6:.1f} MB; "
          f"its maps and the network's differ by {difference:.1e} of their range.")
    print(f"Next: lineside calibrate {out}")


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of ``256`` or ``HEIGHTxWIDTH``. Raises InputError."""
    from edge.errors import InputError

    if text is None:
        return None
    sides = text.split("x")
    if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and 16 <= int(side) <= 8192 for side in sides):
        raise InputError("--size is not one", got=text, expected="px, such as 256 or 256x320 (height x width), from 16 to 8192")
    return int(sides[0]), int(sides[-1])

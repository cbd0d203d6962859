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
    run: Annotated[Path | None,
                   typer.Argument(help="The run that `lineside fit` wrote; or give --torch or --onnx.")] = None,
    torch_factory: Annotated[str | None, typer.Option("--torch", metavar="FILE.py:FACTORY",
                                                      help="A function that returns your own network: normalised "
                                                      "images [N, C, H, W] -> map [N, 1, h, w].")] = None,
    onnx_model: Annotated[Path | None, typer.Option("--onnx", metavar="MODEL.onnx",
                                                    help="Your own network as an ONNX graph.")] = None,
    data: Annotated[Path | None, typer.Option(help="Good parts that your own network was not trained on.")] = None,
    size: Annotated[str | None, typer.Option(help="Input of your own network in px: 256 or HEIGHTxWIDTH; default: the "
                                             "graph's, or 256.")] = None,
    channels: Annotated[int, typer.Option(help="Input of your own network: 1 grey, 3 colour; a graph with fixed "
                                          "channels decides itself.")] = 3,
    mean: Annotated[str, typer.Option(help="Its normalisation: (values in 0..1 - mean) / std.")] = "0",
    std: Annotated[str, typer.Option(help="One number, or one for each channel, separated by commas.")] = "1",
    post_filter: Annotated[str, typer.Option(help="Its post-filter, as in decision.toml.")] = "mean:5,threshold",
    tile: Annotated[int | None,
                    typer.Option(help="Side in px of the square tiles that it sees; default: it sees whole frames.",
                                 min=64)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Turn a run, or your own network, into a bundle for the line, once its graph gives the same maps as the
    network.
    """
    from edge.base.errors import InputError
    from edge.base.packages import need

    need("train", "torch", "onnx", "onnxruntime", "onnxscript")
    from edge.base.console import progress_bar
    from export.foreign import export_foreign
    from export.onnx import export_run

    given = [source for source in (run, torch_factory, onnx_model) if source is not None]
    if len(given) != 1:
        raise InputError("one network is exported at a time", got=", ".join(map(str, given)) or "none",
                         expected="a run, --torch or --onnx")
    if run is not None:
        if data is not None:
            raise InputError("a run has its own images", got=f"--data {data}",
                             expected="no --data, which is for --torch and --onnx")
        if tile is not None:
            raise InputError("a run has its own tiles", got=f"--tile {tile}",
                             expected="no --tile, an option of `lineside fit`")
        bundle, difference = export_run(run, out)
    else:
        if data is None:
            raise InputError("your own network needs good parts to be checked on", got="no --data",
                             expected="--data DIR with good images that it was not trained on")
        if channels not in (1, 3):
            raise InputError("--channels is invalid", got=channels, expected="1 or 3")
        with progress_bar("reading good parts") as progress:
            bundle, difference = export_foreign(
                out, data, torch_factory=torch_factory, onnx_model=onnx_model, size=_size(size), channels=channels,
                mean=mean, std=std,
                post_filter=post_filter, tile=tile, progress=progress)
    size_bytes = sum(file.stat().st_size for file in (out / "model").rglob("*") if file.is_file())
    if as_json:
        print(json.dumps({"bundle": str(out), "detector": bundle.card.detector, "parity": difference,
                          "bytes": size_bytes}))
        return
    print(f"{out}: {bundle.card.detector}, {size_bytes / 1e6:.1f} MB; "
          f"its maps and the network's differ by {difference:.1e} of their range.")
    print(f"Next: lineside calibrate {out}")


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of ``256`` or ``HEIGHTxWIDTH``. Raises InputError."""
    from edge.base.errors import InputError

    if text is None:
        return None
    sides = text.split("x")
    if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and 16 <= int(side) <= 8192
                                           for side in sides):
        raise InputError("--size is invalid", got=text,
                         expected="px, such as 256 or 256x320 (height x width), from 16 to 8192")
    return int(sides[0]), int(sides[-1])


@app.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(help="A calibrated bundle; gets its fp16.onnx, int8.onnx and report.html.")],
    calibration: Annotated[Path | None, typer.Option(metavar="SET",
                                                     help="A reviewed set of `lineside collect`; default: the good "
                                                     "parts behind the threshold.")] = None,
    good: Annotated[Path | None,
                    typer.Option(help="The good parts given to `lineside calibrate --good`, if any.")] = None,
    limits: Annotated[str | None, typer.Option(metavar="NAME=SHARE,...",
                                               help="The most that a precision may change, such as "
                                               "flips=0.002,contrast=0.1; also auroc, aupro.")] = None,
    frames: Annotated[int, typer.Option(help="Frames that decisions are compared on.")] = 2000,
    minutes: Annotated[float, typer.Option(help="Time limit of the search for nodes that must stay float32.",
                                           min=0)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Make FP16 and INT8 graphs, and offer those whose decisions agree with float32's."""
    from edge.base.packages import need

    need("train", "torch", "onnx", "onnxruntime", "matplotlib", "pyaupro", "sklearn")
    from rich.console import Console
    from rich.table import Table

    from edge.base.console import progress_bars
    from edge.bundle.bundle import load_bundle
    from edge.engines.openvino import OpenVino
    from export.gate import parse_limits
    from export.quantize import quantize as run_quantisation
    from export.report import write_report

    allowed = parse_limits(limits)
    with progress_bars() as progress:
        made = run_quantisation(load_bundle(bundle), calibration=calibration, good=good, limits=allowed, frames=frames,
                                minutes=minutes, progress=progress)
        write_report(made)
    chosen, offered = made.bundle.choose("auto", OpenVino.name), made.bundle.offered()
    if as_json:
        print(json.dumps({
            "bundle": str(bundle), "offered": offered, "auto": chosen, "frames": len(made.gate.frames),
            "device": made.device,
            "report": str(bundle / "report.html"), "calibration": made.calibration, "seconds": round(made.seconds, 1),
            "remark": made.remark,
            "precisions": {name: {
                "passed": name in offered, "reason": result.reason, "ms_per_image": result.ms_per_image,
                "nodes": result.nodes,
                "kept": [vars(loss) for loss in result.kept], "ranges": result.ranges, "evenness": result.evenness,
                "saturating": result.saturating,
                "search_ended": result.searched, **({} if result.findings is None else {
                    k: v for k, v in result.findings.as_json().items() if k not in ("passed", "reasons")}),
            } for name, result in made.results.items()},
        }))
        return
    table = Table("precision", "offered", "flipped decisions", "50 % found at", "90 % found at", "ms/image",
                  "stay float",
                  title=f"{bundle} against float32, {len(made.gate.frames)} frames, OpenVINO on {made.device}")
    for name, result in made.results.items():
        found = result.findings
        cells = ["-"] * 3 if found is None else [str(len(found.flips)), *(
            "never" if value is None else f"{value:.3f}" for value in (found.contrast_50, found.contrast_90))]
        speed = "-" if result.ms_per_image is None else f"{result.ms_per_image:.1f}"
        table.add_row(name, "[green]yes" if name in offered else "[red]no", *cells, speed,
                      f"{len(result.kept)} of {result.nodes}" if result.nodes else "-")
    console = Console()
    console.print(table)
    for name, result in made.results.items():
        if result.reason:
            console.print(f"{name}: {result.reason}", highlight=False, soft_wrap=True)
    if made.remark:
        console.print(made.remark, highlight=False, soft_wrap=True)
    console.print(f"--precision auto takes {chosen}. Pictures: {bundle / 'report.html'}", highlight=False,
                  soft_wrap=True)


@app.command()
def engine(
    bundle: Annotated[Path, typer.Argument(help="A calibrated bundle.")],
    precision: Annotated[str, typer.Option(metavar="auto|fp32|fp16|int8",
                                           help="auto: all that passed the gate.")] = "auto",
    batch: Annotated[str, typer.Option(metavar="LEAST:BEST:MOST", help="Images at once.")] = "1:4:16",
    workspace: Annotated[int, typer.Option(help="MB of GPU memory that building may use.", min=16)] = 1024,
    good: Annotated[Path | None,
                    typer.Option(help="The good parts given to `lineside calibrate --good`, if any.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also time each layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Build TensorRT plans for this machine's GPU, with thresholds of their own."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from edge.base.console import progress_bars
    from edge.bundle.bundle import load_bundle
    from export.tensorrt import make_engines, parse_batch

    with progress_bars() as progress:
        loaded, device, made = make_engines(load_bundle(bundle), precision=precision, batch=parse_batch(batch),
                                            workspace_mb=workspace, good=good, layers=layers, progress=progress)
    offered = [built.precision for built in made if not built.reason]
    chosen = loaded.choose("auto", "tensorrt") if offered else None
    if as_json:
        print(json.dumps({"bundle": str(bundle), "device": asdict(device), "offered": offered, "auto": chosen,
                          "precisions": {
            built.precision: {**asdict(built), "plan": built.plan and str(built.plan)} for built in made}}))
    else:
        console = Console()
        table = Table("precision", "offered", "built in", "threshold", "ms/image", "CUDA graph",
                      title=f"{bundle} on {device.name}")
        for built in made:
            table.add_row(built.precision, "[red]no" if built.reason else "[green]yes", "cached" if built.cached
                          else f"{built.seconds:.0f} s", *("-" if value is None else f"{value:.5g}"
                                                           for value in (built.threshold, built.ms_per_image)),
                          "-" if built.reason else built.without_graphs or "yes")
        console.print(table)
        for built in made:
            for name, ms in list((built.layers or {}).items())[:10]:
                console.print(f"{built.precision}: {ms:.3f} ms {name}", highlight=False, soft_wrap=True, markup=False)
            if built.reason:
                console.print(f"{built.precision}: {built.reason}", highlight=False, soft_wrap=True, markup=False)
        if chosen:
            console.print(f"--precision auto takes {chosen} on TensorRT. Plans: {made[0].plan and made[0].plan.parent}",
                          highlight=False, soft_wrap=True)
    if not offered:
        from edge.base.errors import EngineError

        raise EngineError(f"no plan of {bundle} can be offered", got=made[0].reason.rstrip("."))

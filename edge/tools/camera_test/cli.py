"""``lineside cameras`` and ``lineside camera-test``: what cameras there are, and whether a line's are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edge.cameras.camera import FoundCamera
    from edge.tools.camera_test.report import CameraReport, Spread

app = typer.Typer()


@app.command()
def cameras(as_json: Annotated[bool, typer.Option("--json", help="Print the cameras as JSON.")] = False) -> None:
    """List the cameras that this machine sees, with what the line file needs to know of each."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edge.base.kinds import load_kind
    from edge.cameras.kinds import CAMERAS

    found, missing = _find()
    if as_json:
        print(json.dumps({"cameras": [asdict(camera) for camera in found],
                          "missing": [{"kind": kind, "text": text} for kind, text in missing]}))
        return
    console = Console()
    if found:
        table = Table("kind", "key", "vendor", "model", "address", "")
        for camera in found:
            table.add_row(*(escape(text) for text in (camera.kind, camera.key, camera.vendor, camera.model, camera.address, camera.text)))
        console.print(table)
        for camera in found:
            key = load_kind(CAMERAS, camera.kind).key
            print(f'\n[camera]\nkind = "{camera.kind}"\n{key} = "{camera.key}"')
    else:
        print("no camera found: look at power and cable. A GigE Vision camera has to be in this machine's network, 169.254.x.x on both "
              "sides or addresses of one range (ip address), and no firewall may hold back its answers; a USB camera is seen by lsusb")
    for kind, text in missing:
        print(f"not looked for: {kind}: {text}")


def _find() -> tuple[list[FoundCamera], list[tuple[str, str]]]:
    """What is found, and the kinds that cannot be looked for, with what they lack."""
    from edge.base.errors import CameraError
    from edge.base.kinds import load_kind
    from edge.cameras.kinds import CAMERAS

    found: list[FoundCamera] = []
    missing: list[tuple[str, str]] = []
    for kind in CAMERAS:
        try:
            found += load_kind(CAMERAS, kind).discover()
        except CameraError as error:
            missing.append((kind, str(error)))
    return found, missing


@app.command("camera-test")
def camera_test(
    line: Annotated[Path, typer.Argument(help="The line file. The line must not run.", metavar="LINE.toml")],
    seconds: Annotated[float, typer.Option(help="How long; Ctrl-C ends it early.", min=0.1)] = 10,
    rate: Annotated[float, typer.Option(help="Triggers a second, where the line triggers the camera.", min=0.01, max=10_000)] = 10,
    free: Annotated[bool, typer.Option("--free", help="Let cameras run free that a sensor or the line triggers.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the contact sheet.", metavar="DIR")] = Path("out/camera-test"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Try a line's cameras: rate, jitter, losses, exposure, focus, a contact sheet, what to change. Exit code 1 where frames were lost."""
    from rich.console import Console
    from rich.table import Table

    from edge.base.console import progress_bars
    from edge.line_file import read_line_file
    from edge.tools.camera_test.contact_sheet import write_sheet
    from edge.tools.camera_test.trial import try_cameras

    file = read_line_file(line)
    with progress_bars() as progress:
        tried = try_cameras(file.camera, line.parent, seconds=seconds, rate=rate, free=free, progress=progress)
    sheet = out / f"{line.stem}.png"
    write_sheet(sheet, tried)
    reports = [one.report for one in tried]
    if as_json:
        print(json.dumps({"cameras": [report.as_json() for report in reports], "sheet": str(sheet)}))
    else:
        console = Console()
        table = Table("", *(f"camera {report.camera}: {report.kind}" for report in reports), title=file.line.name)
        for cells in zip(*(_rows(report) for report in reports), strict=True):
            table.add_row(cells[0][0], *(value for _, value in cells))
        console.print(table)
        for report in reports:
            for text in report.advice:
                console.print(f"camera {report.camera}: {text}", soft_wrap=True, highlight=False, markup=False)
        if not any(report.advice for report in reports):
            console.print("nothing to change", style="green")
        console.print(f"contact sheet: {sheet}", soft_wrap=True, highlight=False, markup=False)
    if any(report.fails for report in reports):
        raise typer.Exit(1)


def _rows(report: CameraReport) -> list[tuple[str, str]]:
    """A camera's figures, as a person reads them."""
    def times(spread: Spread | None) -> str:
        return "-" if spread is None else f"{spread.p50:.2f} / {spread.p99:.2f} / {spread.max:.2f}"

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lost = {"never came": report.gaps, "incomplete": report.incomplete, "unanswered": report.unanswered, "dropped": report.dropped,
            "overtaken": report.overtaken, "doubled": report.doubled, "disconnects": report.disconnects}
    clipped, focus = report.clipped, report.focus
    known = {"frames", "lost", "unasked", *lost}
    return [
        ("frames", f"{report.frames} in {report.seconds:.1f} s" + ("" if report.triggers is None else f", {report.triggers} triggers")),
        ("rate", f"{number(report.rate, '.2f')} a second"),
        ("jitter ms p50 / p99 / max", times(report.jitter_ms) + (" (camera's clock)" if report.device_times else "")),
        ("trigger to frame ms", times(report.trigger_to_frame_ms)), ("trigger to exposure ms", times(report.trigger_to_exposure_ms)),
        ("window_ms to set", number(report.window_ms, "g")),
        ("lost", ", ".join(f"{value} {name}" for name, value in lost.items() if value) or "none"),
        ("driver", ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in report.counters.items()
                             if value and name not in known) or "-"),
        ("pixels at 0, mean / worst", f"{100 * clipped['low']:.2f} % / {100 * clipped['low_worst']:.2f} %"),
        ("pixels at 255", f"{100 * clipped['high']:.2f} % / {100 * clipped['high_worst']:.2f} %"),
        ("mean level", number(report.level, ".0f")),
        ("focus median / lowest / highest", " / ".join(f"{value:.3g}" for value in focus.values()) or "-"),
        ("exposure_us", number(report.exposure_us, "g")),
        ("looked at", f"{report.measured} of {report.frames}"),
    ]

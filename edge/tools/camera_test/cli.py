"""``lineside cameras`` lists cameras. ``lineside camera-test`` tests those of a line."""

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
    """List the cameras that this machine sees, each with its section for the line file."""
    from dataclasses import asdict
    from pkgutil import resolve_name

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

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
            cells = (camera.kind, camera.key, camera.vendor, camera.model, camera.address, camera.text)
            table.add_row(*(escape(text) for text in cells))
        console.print(table)
        for camera in found:
            key = resolve_name(CAMERAS[camera.kind]).key
            print(f'\n[camera]\nkind = "{camera.kind}"\n{key} = "{camera.key}"')
    else:
        print("no camera found: check power and cable. A GigE Vision camera must be in the same network as this "
              "machine: both have 169.254.x.x addresses, or addresses of one range (see `ip address`). No firewall may "
              "block its answers. `lsusb` shows USB cameras")
    for kind, text in missing:
        print(f"not searched: {kind}: {text}")


def _find() -> tuple[list[FoundCamera], list[tuple[str, str]]]:
    """The cameras found, and the kinds that cannot be searched with the reason."""
    from pkgutil import resolve_name

    from edge.base.errors import CameraError
    from edge.cameras.kinds import CAMERAS

    found: list[FoundCamera] = []
    missing: list[tuple[str, str]] = []
    for kind in CAMERAS:
        try:
            found += resolve_name(CAMERAS[kind]).discover()
        except CameraError as error:
            missing.append((kind, str(error)))
    return found, missing


@app.command("camera-test")
def camera_test(
    line: Annotated[Path, typer.Argument(help="The line file. The line must not be running.", metavar="LINE.toml")],
    seconds: Annotated[float, typer.Option(help="How long to test; Ctrl-C ends it early.", min=0.1)] = 10,
    rate: Annotated[float, typer.Option(help="Triggers per second, if the line triggers the camera.", min=0.01,
                                        max=10_000)] = 10,
    free: Annotated[bool, typer.Option("--free", help="Let the cameras run free, without any trigger.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the contact sheet.", metavar="DIR")] = Path("out/camera-test"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Test a line's cameras: rate, jitter, losses, exposure, focus. Draws a contact sheet and says what to change.

    Exit code 1 means that frames were lost.
    """
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
    """A camera's figures as rows of a table."""
    def times(spread: Spread | None) -> str:
        return "-" if spread is None else f"{spread.p50:.2f} / {spread.p99:.2f} / {spread.max:.2f}"

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lost = {"never came": report.gaps, "incomplete": report.incomplete, "unanswered": report.unanswered,
            "dropped": report.dropped, "overtaken": report.overtaken, "doubled": report.doubled,
            "disconnects": report.disconnects}
    triggers = "" if report.triggers is None else f", {report.triggers} triggers"
    clipped, focus = report.clipped, report.focus
    known = {"frames", "lost", "unasked", *lost}
    return [
        ("frames", f"{report.frames} in {report.seconds:.1f} s{triggers}"),
        ("rate", f"{number(report.rate, '.2f')} per second"),
        ("jitter ms p50 / p99 / max", times(report.jitter_ms) + (" (camera's clock)" if report.device_times else "")),
        ("trigger to frame ms", times(report.trigger_to_frame_ms)),
        ("trigger to exposure ms", times(report.trigger_to_exposure_ms)),
        ("recommended window_ms", number(report.window_ms, "g")),
        ("lost", ", ".join(f"{value} {name}" for name, value in lost.items() if value) or "none"),
        ("driver", ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in report.counters.items()
                             if value and name not in known) or "-"),
        ("pixels at 0, mean / worst", f"{100 * clipped['low']:.2f} % / {100 * clipped['low_worst']:.2f} %"),
        ("pixels at 255", f"{100 * clipped['high']:.2f} % / {100 * clipped['high_worst']:.2f} %"),
        ("mean level", number(report.level, ".0f")),
        ("focus median / lowest / highest", " / ".join(f"{value:.3g}" for value in focus.values()) or "-"),
        ("exposure_us", number(report.exposure_us, "g")),
        ("measured", f"{report.measured} of {report.frames}"),
    ]

"""``lineside inspect`` and ``lineside run``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.engines.backends import BACKEND_HELP

app = typer.Typer()
NO_TROUBLE = ("frames", "completed_buffers", "unasked")  # counters of cameras
PRECISION = Annotated[str, typer.Option(metavar="fp32|bf16|fp16|int8|auto", help="Those that passed the gate of `lineside quantize`; "
                                        "auto: the fastest of them.")]
BACKEND = Annotated[str, typer.Option(metavar="BACKEND", help=BACKEND_HELP)]


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
    from edge.images.files import list_images, read_image, write_image
    from edge.inspection.choice import choose
    from edge.inspection.inspector import Inspector

    chosen = choose(load_bundle(bundle), precision, backend)
    value = chosen.threshold_if_any
    paths = [path for given in images for path in (list_images(given) if given.is_dir() else [given])]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write overlays to {out}", got=error.strerror, expected="a writable folder") from error
    results: list[dict[str, Any]] = []
    failed = 0
    names = _overlay_names(paths)
    with Inspector(chosen.bundle, precision=chosen.precision, backend=chosen.backend) as inspector, progress_bar("inspecting") as progress:
        for done, (path, name) in enumerate(zip(paths, names, strict=True), 1):
            try:
                results.append(_inspect_one(inspector, path, read_image(path), value, out, name, write_image))
            except InputError as error:
                failed += 1
                print(f"lineside: {error}" if str(path) in str(error) else f"lineside: {path}: {error}", file=sys.stderr)
            except OSError as error:
                raise InputError(f"cannot write overlays to {out}", got=error.strerror, expected="a folder with room") from error
            progress(done, len(paths))
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        _print_verdicts(results, bundle, value is None)
    if failed:
        raise InputError(f"{failed} of {len(paths)} images could not be inspected", next="The messages above say why.")


@app.command()
def run(
    line: Annotated[Path, typer.Argument(help="The line file.", metavar="LINE.toml")],
    parts: Annotated[int, typer.Option(help="End after so many parts; 0: run until stopped.", min=0)] = 0,
    precision: PRECISION = "fp32",
    backend: BACKEND = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON at the end.")] = False,
) -> None:
    """Run a line until SIGINT or SIGTERM, then print its ledger."""
    _run(line, parts, precision, backend, as_json)


@app.command()
def record(
    line: Annotated[Path, typer.Argument(help="The line file.", metavar="LINE.toml")],
    out: Annotated[Path, typer.Option(help="The session to write: a folder that must not exist yet.", metavar="SESSION")],
    parts: Annotated[int, typer.Option(help="End after so many parts; 0: run until stopped.", min=0)] = 0,
    precision: PRECISION = "fp32",
    backend: BACKEND = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON at the end.")] = False,
) -> None:
    """Run a line and write down frames, triggers, verdicts and the bytes of the wire, for `lineside replay`."""
    _run(line, parts, precision, backend, as_json, out)


def _run(line: Path, parts: int, precision: str, backend: str, as_json: bool, session: Path | None = None) -> None:
    import os
    import signal
    import threading

    from rich.console import Console
    from rich.status import Status

    from edge.run.supervisor import SOCKET, Supervisor

    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(f"lineside: {text}", highlight=False, markup=False, soft_wrap=True)

    if SOCKET not in os.environ:
        supervisor = Supervisor(line, parts, say, session)
        code = supervisor.run()
        if supervisor.ledger is not None and as_json:
            print(json.dumps(supervisor.ledger))
        raise typer.Exit(code)

    from edge.run.runtime import Line

    running = Line(line, control=Path(os.environ[SOCKET]), precision=precision, backend=backend, say=say)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: running.stop())
    console.print(f"line {running.file.line.name} is ready in {running.precision} on {running.backend} and waits for the PLC on "
                  f"{running.file.plc.port}", highlight=False)
    done = threading.Event()

    def show(status: Status) -> None:
        while not done.wait(0.5):
            triggers, passed, rejected, uninspected = running.counts
            status.update(f"{triggers} parts: {passed} passed, {rejected} rejected, {uninspected} uninspected")

    if console.is_terminal:
        with console.status("waiting for the PLC") as status:
            watcher = threading.Thread(target=show, args=(status,), daemon=True)
            watcher.start()
            result = running.run()
            done.set()
            watcher.join()
    else:
        result = running.run()
    if running.error is not None:  # the supervisor starts the runtime again
        raise running.error
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        _print_ledger(result)
    if result.journal["rows_lost"]:
        raise typer.Exit(1)


@app.command()
def check(
    line: Annotated[Path, typer.Argument(help="The line file. The line must not run.", metavar="LINE.toml")],
    rate: Annotated[float | None, typer.Option(help="Parts a second.", min=0.001)] = None,
    speed: Annotated[float | None, typer.Option(help="Of the belt, in mm a second.", min=0.001)] = None,
    pitch: Annotated[float | None, typer.Option(help="From part to part, in mm; with --speed this gives the rate.", min=0.001)] = None,
    frames: Annotated[int, typer.Option(help="How many to measure; p99.9 needs 1000.", min=50)] = 1000,
    precision: PRECISION = "fp32",
    backend: BACKEND = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the budget as JSON.")] = False,
) -> None:
    """Measure a line's latency budget on this machine: margin, highest safe speed, what to change. Exit code 1 where it does not fit."""
    from rich.console import Console
    from rich.table import Table

    from edge.base.console import progress_bars
    from edge.base.errors import InputError
    from edge.tools.check import advice, measure

    if pitch is not None:
        if speed is None or rate is not None:
            raise InputError("--pitch gives the rate together with --speed", got="--rate too" if rate else "no --speed",
                             next="Give --rate alone, or --speed and --pitch.")
        rate = speed / pitch
    with progress_bars() as progress:
        file, budget = measure(line, precision=precision, backend=backend, frames=frames, rate=rate, progress=progress)
    said = advice(budget, precision)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    if as_json:
        print(json.dumps({
            "stages": {stage.name: {name: round(stage.at(share), 3) for name, share in shares.items()} for stage in budget.stages},
            "frame": budget.frame,
            "available_ms": budget.available, "needed_ms": round(budget.needed, 3), "margin_ms": round(budget.margin, 3),
            "lead_ms": budget.lead, "lead_needed_ms": round(budget.lead_needed, 3), "rate": rate,
            "highest_rate": round(budget.highest_rate, 3), "highest_speed_share": round(budget.highest_speed, 4),
            "highest_speed_mm_s": None if speed is None else round(speed * budget.highest_speed, 1), "fits": budget.fits, "advice": said}))
    else:
        table = Table("stage", *(f"{name} ms" for name in shares), title=f"{file.line.name}: from the trigger to the verdict, frames of "
                                                                   + " x ".join(map(str, budget.frame)))
        for stage in budget.stages:
            table.add_row(stage.name, *(f"{stage.at(share):.2f}" for share in shares.values()))
        console = Console()
        console.print(table)
        colour = "green" if budget.margin >= 0 else "red"
        console.print(f"needed at p99.9: {budget.needed:.1f} ms of {budget.available:g} ms (travel_ms - lead_ms); "
                      f"margin [{colour}]{budget.margin:.1f} ms", soft_wrap=True, highlight=False)
        asked = f", of {rate:.1f} now" if rate else ""
        console.print(f"highest safe rate: {budget.highest_rate:.1f} parts a second{asked}", highlight=False)
        now = "" if speed is None else f" ({speed * budget.highest_speed:.0f} mm/s, of {speed:g} now)"
        console.print(f"highest safe speed: {budget.highest_speed:.2f} times that of now{now}", highlight=False)
        for text in said:
            console.print(f"change: {text}", soft_wrap=True, highlight=False)
    if not budget.fits:
        raise typer.Exit(1)


@app.command()
def reload(
    line: Annotated[Path, typer.Argument(help="The line file of a running line.", metavar="LINE.toml")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Let a running line take its bundle anew, if the bundle's golden parts come out as they should."""
    from edge.line_file import read_line_file
    from edge.run.commands import ask_to_reload

    file = read_line_file(line)
    text = ask_to_reload(file.resolve(line, file.journal.path), line)
    print(json.dumps({"live": str(file.resolve(line, file.line.bundle)), "text": text}) if as_json else text)


@app.command()
def clear(
    line: Annotated[Path, typer.Argument(help="The line file of a running line.", metavar="LINE.toml")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Let a line that a fault has stopped (stop_on) take parts again, after a person has seen to it."""
    _command(line, "clear", as_json)


@app.command()
def challenge(
    line: Annotated[Path, typer.Argument(help="The line file of a running line.", metavar="LINE.toml")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Let a running line prove that the next part, which is known to be bad, is rejected, ejected, and seen to leave."""
    _command(line, "challenge", as_json)


def _command(line: Path, command: str, as_json: bool) -> None:
    from edge.base.errors import LinkError
    from edge.line_file import read_line_file
    from edge.run.commands import ask

    file = read_line_file(line)
    told = ask(file.resolve(line, file.journal.path), line, command)
    if as_json:
        print(json.dumps(told))
    if not told["ok"]:
        raise LinkError(str(told["text"]))
    if not as_json:
        print(told["text"])


@app.command()
def doctor(
    gpu_report: Annotated[Path | None, typer.Option(metavar="DIR", help="Also run the tests and benchmarks that need a GPU, and write an "
                                                    "archive with all of it to DIR.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine can do, what is missing, and what to do about it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edge.tools.doctor import examine

    findings = examine()
    archive = None
    if gpu_report is not None:
        from edge.tools.gpu_report import write_gpu_report

        archive = write_gpu_report(gpu_report, findings)
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "archive": archive and str(archive)}))
        return
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark = {"ok": "[green]ok", "missing": "[red]missing", "improvable": "[yellow]improvable"}[finding.status]
        table.add_row(mark, escape(f"{finding.what}: {finding.text}" + (f"\n  {finding.remedy}" if finding.remedy else "")))
    console = Console()
    console.print(table)
    if archive is not None:
        console.print(f"GPU report: {archive}", highlight=False, soft_wrap=True)


def _print_ledger(result: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    ledger = result.ledger
    table = Table("ledger", "parts", title="triggers = passed + rejected + uninspected")
    for name in ("triggers", "passed", "rejected", "uninspected"):
        table.add_row(name, str(ledger[name]))
        if name == "uninspected":
            for cause, count in sorted(ledger["causes"].items()):
                table.add_row(f"  {cause}", str(count))
    for name in ("confirmed", "unconfirmed", "unexpected_confirms", "refused_triggers", "late_verdicts", "failed_orders", "link_losses"):
        if ledger[name] or name == "confirmed":
            table.add_row(name.replace("_", " "), str(ledger[name]))
    console = Console()
    console.print(table)
    if result.latency_ms:
        latency = result.latency_ms
        console.print(f"exposure to verdict: p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms, max {latency['max']:.1f} ms")
    if trouble := [f"{count} {name.replace('_', ' ')}" for name, count in result.frames.items() if count and name not in NO_TROUBLE]:
        console.print(f"frames: {', '.join(trouble)}", soft_wrap=True, highlight=False)
    journal = result.journal
    console.print(f"journal: {journal['path']}, {journal['rows']} rows, {journal['pictures']} pictures", soft_wrap=True)
    if not result.realtime:
        console.print("Line control ran without real-time priority (SCHED_FIFO): run as root or grant LimitRTPRIO.", soft_wrap=True)


def _overlay_names(paths: list[Path]) -> list[str]:
    """A name for each picture: folder and file, numbered where two images would share one."""
    names: list[str] = []
    for path in paths:
        name = "-".join(part for part in path.with_suffix("").parts[-2:] if part.strip("./"))
        names.append(name if name not in names else f"{name}~{len(names)}")
    return names


def _inspect_one(inspector: Any, path: Path, frame: Any, threshold: float | None, out: Path, name: str, write: Any) -> dict[str, Any]:
    from edge.inspection.overlay import draw_overlay

    inspection = inspector.inspect(frame, threshold)
    overlay = out / f"{name}-verdict.png"  # never the name of an image that is inspected
    write(overlay, draw_overlay(frame, inspection, path.name))
    return {
        "image": str(path), "verdict": None if inspection.verdict is None else inspection.verdict.value, "score": inspection.score,
        "threshold": inspection.threshold, "blobs": [asdict(blob) for blob in inspection.blobs], "overlay": str(overlay),
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

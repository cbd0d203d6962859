"""``lineside render``, ``plc-simulator``, ``demo`` and ``simulate``: a line without hardware, and one with faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]


@app.command()
def render(
    surface: Annotated[str, typer.Argument(help="woven (grey cloth) or printed (colour parts).")],
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist yet.")],
    good: Annotated[int, typer.Option(help="Good images in train/good.", min=0)] = 200,
    test_good: Annotated[int, typer.Option(help="Good images in test/good.", min=0)] = 50,
    defective: Annotated[int, typer.Option(help="Defective images in test/, of all kinds of defects.", min=0)] = 60,
    sequence: Annotated[int, typer.Option(help="Instead: so many parts in order of arrival, as a camera sees them.",
                                          min=0)] = 0,
    defect_rate: Annotated[float, typer.Option(help="Share of defective parts in a sequence.", min=0, max=1)] = 0.1,
    size: Annotated[int, typer.Option(help="Side of an image in px.")] = 256,
    turned: Annotated[bool, typer.Option(help="Printed parts come shifted and turned.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed is another product.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Render a surface with labelled defects and exact masks, in MVTec AD layout or as a sequence of parts."""
    from edge.base.console import progress_bar
    from simulation.render.surface import Surface, render_folder, render_sequence

    drawn = Surface(surface, seed, size, turned)
    with progress_bar(f"rendering {surface}") as progress:
        if sequence:
            render_sequence(out, drawn, parts=sequence, defect_rate=defect_rate, progress=progress)
        else:
            render_folder(out, drawn, train_good=good, test_good=test_good, defective=defective, progress=progress)
    figures = {"out": str(out), "images": sequence or good + test_good + defective}
    print(json.dumps(figures) if as_json else f"{out}: {figures['images']} images of {surface}, seed {seed}")


@app.command("plc-simulator")
def plc_simulator(
    port: Annotated[Path, typer.Option(help="Where the line finds the PLC: a link to create, or a serial port.")],
    log: Annotated[Path, typer.Option(help="The PLC's own log, JSON lines.")],
    rate: Annotated[float, typer.Option(help="Parts a second.")] = 10.0,
    parts: Annotated[int, typer.Option(help="How many parts; 0: until stopped.")] = 0,
    travel_ms: Annotated[float, typer.Option(help="Time from the camera to the ejector.")] = 600.0,
    jitter: Annotated[float, typer.Option(help="Jitter of the triggers, as a share of the pitch of parts.")] = 0.0,
    noise: Annotated[float, typer.Option(help="Probability that a message on the wire is corrupted.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of jitter and noise.")] = 0,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait for the line to become ready.")] = 60.0,
    faults: Annotated[Path | None, typer.Option(help="The fault board of `lineside simulate`.", hidden=True)] = None,
    speeds: Annotated[str, typer.Option(metavar="SECONDS:SHARE,...",
                                        help="Shares of the nominal belt speed, each for some seconds: "
                                        "3:1,1:0,2:0.5. Below 0 it runs backwards.")] = "",
    by_encoder: Annotated[bool, typer.Option("--by-encoder",
                                             help="Send the encoder count with each heartbeat.")] = False,
    clear: Annotated[float | None, typer.Option(metavar="SECONDS", help="Clear a fault after so long.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a PLC and its belt: trigger parts, check the line's answers, and log which parts were ejected."""
    import signal
    import threading

    from edge.base.errors import InputError
    from simulation.plc.settings import PlcSettings
    from simulation.plc.simulator import simulate

    try:
        profile = tuple((float(seconds), float(share))
                        for seconds, share in (piece.split(":") for piece in speeds.split(",") if piece))
    except ValueError as error:
        raise InputError("--speeds cannot be read", got=speeds,
                         expected="SECONDS:SHARE,..., such as 3:1,1:0,2:0.5") from error
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = PlcSettings(rate=rate, parts=parts, travel_ms=travel_ms, jitter=jitter, noise=noise, seed=seed,
                           start_timeout_s=start_timeout, speeds=profile, by_encoder=by_encoder, clear_s=clear)
    summary = simulate(port, log, settings, stop.is_set, faults)
    print(json.dumps(summary) if as_json else _plc_lines(summary))


def _plc_lines(summary: dict[str, Any]) -> str:
    return "\n".join(f"{key}: {value if not isinstance(value, list) else f'{len(value)} parts'}"
                     for key, value in summary.items())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for frames, line file, logs and pictures.")] = Path("out/demo"),
    bundle: Annotated[Path | None, typer.Option(help="Use this bundle instead of the packaged one.")] = None,
    parts: Annotated[int, typer.Option(help="How many parts.", min=1)] = 200,
    rate: Annotated[float, typer.Option(help="Parts a second.", min=0.1)] = 20.0,
    seed: Annotated[int, typer.Option(help="Which parts are defective, and how.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a whole line without hardware: rendered cloth, the packaged bundle, and a simulated PLC on a serial port."""
    from simulation.demo import print_demo, run_demo

    summary = run_demo(out, bundle, parts=parts, rate=rate, seed=seed)
    if as_json:
        print(json.dumps(summary))
    else:
        print_demo(summary, out)
    if not summary["reconciled"]:
        raise typer.Exit(1)


@app.command()
def simulate(
    scenario: Annotated[Path, typer.Argument(help="The scenario file.", metavar="SCENARIO.toml")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; out/simulate/NAME unless given.")] = None,
    count: Annotated[int, typer.Option(help="Number of parts, in place of the file's.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed, in place of the file's; -1: the file's.", min=-1)] = -1,
    as_json: AsJson = False,
) -> None:
    """Run a line with the faults of a scenario, and check every part: truth, verdict, reject command, ejection."""
    from simulation.scenario.file import read_scenario

    file = read_scenario(scenario, {name: value
                                    for name, value in (("count", count or None), ("seed", None if seed < 0 else seed))
                                    if value is not None})
    if file.scenario.time == "virtual":
        from simulation.scenario.report import print_virtual
        from simulation.virtual.run import simulate_virtual

        figures = simulate_virtual(file)
        if as_json:
            print(json.dumps(figures))
        else:
            print_virtual(figures)
        return
    from simulation.scenario.report import print_report
    from simulation.scenario.run import simulate_scenario

    folder = out or Path("out/simulate") / file.name
    result, report = simulate_scenario(file, folder)
    if as_json:
        print(json.dumps(report))
    else:
        print_report(result, report, folder)
    if result.failures:
        raise typer.Exit(1)

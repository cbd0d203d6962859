"""``lineside run``, ``record``, ``reload``, ``clear`` and ``challenge``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edge.engines.options import BACKEND, PRECISION

app = typer.Typer()
LINE = Annotated[Path, typer.Argument(help="The line file.", metavar="LINE.toml")]
RUNNING = Annotated[Path, typer.Argument(help="The line file of a running line.", metavar="LINE.toml")]
PARTS = Annotated[int, typer.Option(help="End after so many parts; 0: run until stopped.", min=0)]
LEDGER_AS_JSON = Annotated[bool, typer.Option("--json", help="Print the ledger as JSON at the end.")]
ANSWER_AS_JSON = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


@app.command()
def run(line: LINE, parts: PARTS = 0, precision: PRECISION = "fp32", backend: BACKEND = "auto",
        as_json: LEDGER_AS_JSON = False) -> None:
    """Run a line until SIGINT or SIGTERM, then print its ledger."""
    _run(line, parts, precision, backend, as_json)


@app.command()
def record(
    line: LINE,
    out: Annotated[Path, typer.Option(help="The session to write: a folder that must not exist yet.",
                                      metavar="SESSION")],
    parts: PARTS = 0,
    precision: PRECISION = "fp32",
    backend: BACKEND = "auto",
    as_json: LEDGER_AS_JSON = False,
) -> None:
    """Run a line and record its frames, triggers, verdicts and the bytes on the wire, for `lineside replay`."""
    _run(line, parts, precision, backend, as_json, out)


def _run(line: Path, parts: int, precision: str, backend: str, as_json: bool, session: Path | None = None) -> None:
    from edge.run.start import is_runtime, run_runtime, supervise

    if is_runtime():
        code = run_runtime(line, as_json=as_json, precision=precision, backend=backend)
    else:
        code = supervise(line, parts=parts, as_json=as_json, session=session)
    raise typer.Exit(code)


@app.command()
def reload(line: RUNNING, as_json: ANSWER_AS_JSON = False) -> None:
    """Have a running line load its bundle again. It goes live if its golden parts come out as they should."""
    from edge.line_file import read_line_file
    from edge.run.commands import ask_to_reload

    file = read_line_file(line)
    text = ask_to_reload(file.resolve(line, file.journal.path), line)
    print(json.dumps({"live": str(file.resolve(line, file.line.bundle)), "text": text}) if as_json else text)


@app.command()
def clear(line: RUNNING, as_json: ANSWER_AS_JSON = False) -> None:
    """Let a line that a fault has stopped (stop_on) take parts again, after a person has fixed the cause."""
    _command(line, "clear", as_json)


@app.command()
def challenge(line: RUNNING, as_json: ANSWER_AS_JSON = False) -> None:
    """Have a running line prove that the next part, which is known to be bad, is rejected and seen to be ejected."""
    _command(line, "challenge", as_json)


def _command(line: Path, command: str, as_json: bool) -> None:
    from edge.base.errors import LinkError
    from edge.line_file import read_line_file
    from edge.run.commands import ask

    file = read_line_file(line)
    answer = ask(file.resolve(line, file.journal.path), line, command)
    if as_json:
        print(json.dumps(answer))
    if not answer["ok"]:
        raise LinkError(str(answer["text"]))
    if not as_json:
        print(answer["text"])

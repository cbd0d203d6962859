"""Runs a line as `lineside run` does, in the supervisor's process and in the runtime's.

Simulations call it with parts of their own.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status

from edge.record.session import RECORD
from edge.run.processes import Processes
from edge.run.supervisor import SOCKET, Supervisor

if TYPE_CHECKING:
    from edge.run.result import LineResult
    from edge.run.runtime import Line

STATUS_EVERY = 0.5  # s between two updates of the counts on a terminal
NO_TROUBLE = ("frames", "completed_buffers", "unasked")  # counters of cameras that do not count lost frames


def is_runtime() -> bool:
    """Whether a supervisor started this process as its runtime."""
    return SOCKET in os.environ


def supervise(line: Path, *, parts: int, as_json: bool, session: Path | None = None,
              processes: Processes | None = None) -> int:
    """Run the line of a line file, and return its exit code. See `Supervisor` for the arguments.

    The runtime prints the ledger; where it could not, the supervisor prints line control's counts. Raises InputError.
    """
    console = Console(stderr=True)
    supervisor = Supervisor(line, parts, lambda text: _say(console, text), session, processes)
    code = supervisor.run()
    if supervisor.ledger is not None and as_json:
        print(json.dumps(supervisor.ledger))
    return code


def run_runtime(line: Path, *, as_json: bool, precision: str = "fp32", backend: str = "auto",
                make_line: Callable[..., Line] | None = None) -> int:
    """Be the runtime of a line, and return the exit code.

    make_line: `Line`, or one with faults. Raises what `Line` raises.
    """
    from edge.run.runtime import Line

    console = Console(stderr=True)
    session = os.environ.get(RECORD)
    running = (make_line or Line)(
        line, control=Path(os.environ[SOCKET]), precision=precision, backend=backend,
        say=lambda text: _say(console, text), session=None if session is None else Path(session))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: running.stop())
    console.print(f"line {running.file.line.name} is ready in {running.precision} on {running.backend} and waits for "
                  f"the PLC on {running.file.plc.port}", highlight=False)
    result = _run_with_status(running, console) if console.is_terminal else running.run()
    if running.error is not None:  # the supervisor restarts the runtime
        raise running.error
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        _print_ledger(result)
    return 1 if result.journal["rows_lost"] else 0


def _say(console: Console, text: str) -> None:
    console.print(f"lineside: {text}", highlight=False, markup=False, soft_wrap=True)


def _run_with_status(running: Line, console: Console) -> LineResult:
    """Run, and show the counts on the terminal meanwhile."""
    done = threading.Event()

    def show(status: Status) -> None:
        while not done.wait(STATUS_EVERY):
            triggers, passed, rejected, uninspected = running.counts
            status.update(f"{triggers} parts: {passed} passed, {rejected} rejected, {uninspected} uninspected")

    with console.status("waiting for the PLC") as status:
        watcher = threading.Thread(target=show, args=(status,), daemon=True)
        watcher.start()
        result = running.run()
        done.set()
        watcher.join()
    return result


def _print_ledger(result: LineResult) -> None:
    from rich.table import Table

    ledger = result.ledger
    table = Table("ledger", "parts", title="triggers = passed + rejected + uninspected")
    for name in ("triggers", "passed", "rejected", "uninspected"):
        table.add_row(name, str(ledger[name]))
        if name == "uninspected":
            for cause, count in sorted(ledger["causes"].items()):
                table.add_row(f"  {cause}", str(count))
    for name in ("confirmed", "unconfirmed", "unexpected_confirms", "refused_triggers", "late_verdicts",
                 "failed_orders", "link_losses"):
        if ledger[name] or name == "confirmed":
            table.add_row(name.replace("_", " "), str(ledger[name]))
    console = Console()
    console.print(table)
    if result.latency_ms:
        latency = result.latency_ms
        console.print(f"exposure to verdict: p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms, "
                      f"max {latency['max']:.1f} ms")
    if trouble := [f"{count} {name.replace('_', ' ')}" for name, count in result.frames.items() if count
                   and name not in NO_TROUBLE]:
        console.print(f"frames: {', '.join(trouble)}", soft_wrap=True, highlight=False)
    journal = result.journal
    console.print(f"journal: {journal['path']}, {journal['rows']} rows, {journal['pictures']} pictures", soft_wrap=True)
    if not result.realtime:
        console.print("Line control ran without real-time priority (SCHED_FIFO): run as root or grant LimitRTPRIO.",
                      soft_wrap=True)

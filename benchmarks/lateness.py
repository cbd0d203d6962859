#!/usr/bin/env python3
"""How late does a part's REJECT go out on the wire? Compares line control in its own process and in a busy one.

A simulated PLC triggers parts on a pty, a simulated runtime rejects each at once, and a hog keeps every core busy.
Lateness is the time from the moment at which the REJECT was due (trigger + travel - lead) until its last byte was read
at the other end of the pty.

    benchmarks/lateness.py --rejects 20000 --out lateness.png
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tty
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge.line_control.job import ControlJob
from edge.line_control.messages import Channel, Hello, JournalWritten
from edge.line_control.parts import BeltTiming
from edge.part.events import Expose, PartVerdict, RuntimeReady
from edge.part.verdict import Verdict
from edge.plc.frames.section import FramesSection
from simulation.plc.wire import Frame, Kind, Reader

TRAVEL, LEAD = 0.300, 0.100  # s
BEAT = 0.050  # s
WARM_UP = 1.0  # s
HOG = "while True: pass"


def job_for(folder: Path, port: str, listener: int, supervisor: int) -> ControlJob:
    """The job that the supervisor would give."""
    return ControlJob({"kind": "frames", "port": port, "baud": 115200}, FramesSection.link,
                      BeltTiming(TRAVEL, LEAD, confirm=0.0), pulse_ms=10, parts=0, run_id=secrets.token_hex(8),
                      restarted=False, belt_file=folder / "belt", listener=listener, supervisor=supervisor)


def as_thread(job: ControlJob) -> None:
    """The same line control as a thread of a process whose interpreter is busy, as an inspection in Python keeps it."""
    from edge.line_control.belt_file import BeltFile
    from edge.line_control.control import LineControl
    from edge.line_control.runtime_connection import RuntimeConnection
    from edge.line_control.state import LineState
    from edge.plc.frames.link import FramesLink

    link = FramesLink(job.plc["port"], job.plc["baud"])
    link.open()
    state = LineState(job.timing, 0, run_id=job.run_id, running=False)
    hello = Hello(job.run_id, False)
    runtime = RuntimeConnection(socket.socket(fileno=job.listener), job.supervisor, threading.Event(), hello)
    belt = BeltFile(job.belt_file, job.run_id)
    control = LineControl(link, state, belt, runtime, pulse_ms=job.pulse_ms, realtime=False)
    thread = threading.Thread(target=control.run)
    thread.start()
    while thread.is_alive():  # images are prepared, maps are read: partly with the interpreter's lock, partly without
        hashlib.sha256(bytes(200_000)).digest()
        sum(range(20_000))


def measure(arguments: argparse.Namespace, how: str, progress: Any) -> dict[str, Any]:
    """Run one of the two; returns lateness in ms, sorted, and what was counted."""
    near, far = os.openpty()
    tty.setraw(far)
    os.set_blocking(near, False)
    lifeline, held = os.pipe()
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{name}/control")
        listener.listen(1)
        job = job_for(Path(name), os.ttyname(far), listener.fileno(), lifeline)
        command = ["-m", "edge.line_control.process"] if how == "process" else [__file__, "--thread"]
        process = subprocess.Popen([sys.executable, *command, job.to_json()], pass_fds=[listener.fileno(), lifeline],
                                   stdout=subprocess.DEVNULL)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(f"{name}/control")
        try:
            return run_parts(near, Channel(connection), arguments.rejects, arguments.rate, progress)
        finally:
            process.send_signal(signal.SIGTERM)
            os.close(held)
            connection.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            for descriptor in (near, far, lifeline):
                os.close(descriptor)


def run_parts(port: int, runtime: Channel, rejects: int, rate: float, progress: Any) -> dict[str, Any]:
    """Play the PLC and the runtime. The PLC's clock is ours in ms; each part reaches the camera at a whole ms of it."""
    reader, began = Reader(), time.monotonic()
    pitch = max(1, round(1000 / rate))  # ms
    due: dict[int, float] = {}
    late: list[float] = []
    realtime, sequence, beat, part, stands = False, 0, 0.0, 0, 0
    ready = float("inf")  # when line control has heard that the runtime is there
    acknowledged = refused = 0
    while len(late) < rejects and time.monotonic() - began < 60 + 3 * rejects / rate:
        now = time.monotonic()
        clock = int((now - began) * 1000)
        if now >= beat:
            os.write(port, Frame(Kind.PLC_HEARTBEAT, 1, 7, 0, 0, 0, clock).encode())
            beat = now + BEAT
        if now >= ready and clock >= stands and part < rejects:
            part, sequence, stands = part + 1, (sequence + 1) & 0xFFFF, max(stands, clock - pitch) + pitch
            os.write(port, Frame(Kind.TRIGGER, 0, 7, sequence, part, 0, clock).encode())
            due[part] = began + clock / 1000 + TRAVEL - LEAD
        wait = max(0.0, min(beat, began + stands / 1000) - time.monotonic()) if part < rejects else 0.01
        select.select([port, runtime], [], [], wait)
        with contextlib.suppress(BlockingIOError):
            data = os.read(port, 4096)
            at = time.monotonic()
            for frame in reader.feed(data):
                if frame.kind == Kind.REJECT and frame.part in due:
                    late.append(1000 * (at - due.pop(frame.part)))
                    progress(len(late))
                if frame.kind in (Kind.VERDICT, Kind.REJECT, Kind.FAULT):
                    ack = Frame(Kind.PLC_ACK, 0, 7, frame.sequence, frame.part, 0, int((at - began) * 1000))
                    os.write(port, ack.encode())
                acknowledged += frame.kind == Kind.LINE_ACK and frame.code == 0
                refused += frame.kind == Kind.LINE_ACK and frame.code != 0
        for message in runtime.receive():
            if isinstance(message, Hello):
                realtime, ready = message.realtime, time.monotonic() + WARM_UP
                runtime.send(RuntimeReady())
            elif isinstance(message, Expose):
                runtime.send(PartVerdict(message.part, Verdict.REJECT, None, 0.9, message.trigger))
            elif hasattr(message, "ended"):
                runtime.send(JournalWritten([message.trigger]))
    return {"late": sorted(late), "realtime": realtime, "triggers": part, "refused": refused}


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """Percentiles in ms (nearest rank)."""
    late = result.pop("late")
    at = {f"p{share:g}_ms": round(late[min(len(late) - 1, int(share / 100 * len(late)))], 3)
          for share in (50, 99, 99.9)} if late else {}
    return {"rejects": len(late), **at, "max_ms": round(late[-1], 3) if late else None, **result}


def draw(late: dict[str, list[float]], path: Path) -> None:
    """The share of rejects that were later than so many ms, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for how, values in late.items():
        if values:
            axes.step([max(value, 1e-3) for value in values], [1 - i / len(values) for i in range(len(values))],
                      where="post", label=how)
    for limit, share in ((1, 0.01), (3, 0.001)):
        axes.plot([limit], [share], "rx")
        axes.annotate(f"{100 * share:g} % at {limit} ms", (limit, share), textcoords="offset points", xytext=(6, 4))
    axes.set(xscale="log", yscale="log", xlabel="later than, ms", ylabel="share of rejects", title="Every core busy")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    if sys.argv[1:2] == ["--thread"]:
        as_thread(ControlJob.from_json(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejects", type=int, default=20_000, help="for each of the two")
    parser.add_argument("--rate", type=float, default=200.0, help="parts a second")
    parser.add_argument("--out", type=Path, default=Path("out/lateness.png"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with contextlib.suppress(OSError):  # else this process is late itself
        os.sched_setscheduler(0, os.SCHED_FIFO | getattr(os, "SCHED_RESET_ON_FORK", 0), os.sched_param(60))
    hogs = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in os.sched_getaffinity(0)]
    results, late = {}, {}
    try:
        with Progress(console=Console(stderr=True), refresh_per_second=1) as bar:
            for how in ("process", "thread"):
                task = bar.add_task(how, total=arguments.rejects)
                results[how] = measure(arguments, how,
                                       lambda n, t=task: bar.update(t, completed=n) if n % 100 == 0 else None)
                late[how] = results[how]["late"]
    finally:
        for hog in hogs:
            hog.kill()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(late, arguments.out)
    found = {how: figures(result) for how, result in results.items()}
    if arguments.json:
        print(json.dumps({**found, "cores": len(hogs), "picture": str(arguments.out)}))
    else:
        table = Table("line control as", *found["process"])
        for how, row in found.items():
            table.add_row(how, *map(str, row.values()))
        Console().print(table)
        print(f"Picture: {arguments.out}")
    return 0 if all(row["rejects"] == arguments.rejects for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

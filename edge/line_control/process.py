"""The process of line control. A busy interpreter makes timers late, so it has an interpreter, a scheduling class and memory of its own.

Started by `edge.run.supervisor`, with its task as JSON: python -m edge.line_control.process TASK
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path

from edge.base.errors import LinesideError, LinkError
from edge.line_control.belt_file import BeltFile
from edge.line_control.control import LineControl
from edge.line_control.messages import Welcome
from edge.line_control.parts import BeltTiming
from edge.line_control.runtime_side import RuntimeSide
from edge.line_control.state import LineState
from edge.plc.kinds import make_link
from edge.plc.tape import LiveTape, RecordingTape

PRIORITY = 50  # SCHED_FIFO
LAST = 2.0  # s that the end of a recording has to be handed over in
MCL_CURRENT, MCL_FUTURE = 1, 2
PR_SET_NAME, PR_SET_TIMERSLACK = 15, 29


def become_realtime() -> str:
    """Take a fixed priority, lock the memory, and stop the collector. Returns what could not be had, or nothing."""
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_NAME, b"lineside-ctl", 0, 0, 0)
    library.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # ns
    gc.collect()
    gc.freeze()
    gc.disable()
    missing = []
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        missing.append(f"no real-time priority ({error.strerror})")
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY and os.geteuid() != 0:
        missing.append("no right to lock its memory")  # with a limit, a lock of what comes later makes allocations fail
    elif library.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        missing.append(f"its memory is not locked ({os.strerror(ctypes.get_errno())})")
    return " and ".join(missing)


def main() -> int:
    """Run line control until it is stopped or finished; prints the ledger as JSON. Returns the exit code."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    task = json.loads(sys.argv[1])
    tape = LiveTape() if task.get("tape") is None else RecordingTape(task["tape"])
    if isinstance(tape, RecordingTape):
        tape.take("begin", lambda: {name: task[name] for name in ("plc", "timing", "parts", "pulse_ms", "session", "again")})
    link = make_link(task["link"], {key: value for key, value in task["plc"].items() if key != "kind"}, tape)
    try:
        if task["again"]:
            with contextlib.suppress(LinkError):  # it is opened again and again
                link.open()
        else:
            link.open()
        belt = BeltFile(Path(task["belt_file"]), task["session"])
    except LinesideError as error:
        print(f"lineside: {error}", file=sys.stderr)
        return error.exit_code
    why_not = tape.take("why_not", become_realtime)
    state = LineState(BeltTiming(**task["timing"]), task["parts"], session=task["session"], running=False)
    welcome = Welcome(task["session"], not why_not, why_not)
    runtime = RuntimeSide(socket.socket(fileno=task["listener"]), task["supervisor"], asked, welcome)
    control = LineControl(link, state, belt, runtime, pulse_ms=task["pulse_ms"], welcome=welcome, tape=tape)
    try:
        control.run()
        tape.take("ledger", state.ledger.as_json)
    except BaseException as error:
        why = type(error).__name__
        tape.take("crashed", lambda: why)
        raise
    finally:
        if isinstance(tape, RecordingTape):
            tape.finish(LAST)
    ledger = state.ledger.as_json()
    print(json.dumps(ledger))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The process of line control. It has an interpreter of its own, because a busy interpreter makes timers late.

`edge.run.supervisor` starts it with a `ControlJob` as JSON: python -m edge.line_control.process JOB
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from edge.base.errors import LinesideError, LinkError
from edge.line_control.belt_file import BeltFile
from edge.line_control.control import LineControl
from edge.line_control.job import ControlJob
from edge.line_control.messages import Welcome
from edge.line_control.realtime import become_realtime
from edge.line_control.runtime_side import RuntimeSide
from edge.line_control.state import LineState
from edge.plc.kinds import make_link
from edge.plc.tape import LiveTape, RecordingTape

LAST = 2.0  # s for handing over the end of a recording


def main(job_json: str, wall_clock: Callable[[], float] = time.time) -> int:
    """Run line control until it is stopped or finished; prints the ledger as JSON. Returns the exit code.

    job_json: a `ControlJob`. wall_clock: s since 1970; a simulation hands in its own.
    """
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    job = ControlJob.from_json(job_json)
    tape = LiveTape() if job.tape is None else RecordingTape(job.tape)
    if isinstance(tape, RecordingTape):
        tape.take("begin", job.tape_entry)
    link = make_link(job.plc, tape)
    try:
        if job.restarted:
            with contextlib.suppress(LinkError):  # line control keeps trying to open it
                link.open()
        else:
            link.open()
        belt = BeltFile(job.belt_file, job.run_id, wall_clock)
    except LinesideError as error:
        print(f"lineside: {error}", file=sys.stderr)
        return error.exit_code
    why_not = tape.take("why_not", become_realtime)
    state = LineState(job.timing, job.parts, session=job.run_id, running=False)
    welcome = Welcome(job.run_id, not why_not, why_not)
    runtime = RuntimeSide(socket.socket(fileno=job.listener), job.supervisor, asked, welcome)
    control = LineControl(link, state, belt, runtime, pulse_ms=job.pulse_ms, welcome=welcome, tape=tape)
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
    sys.exit(main(sys.argv[1]))

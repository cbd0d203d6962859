"""The PLC simulator's process: gives a `Conveyor` a clock, a port and a log."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.base.errors import InputError
from simulation.plc.conveyor import BEAT_S, Conveyor, Note
from simulation.plc.faults import PlcFaults
from simulation.plc.port import Wire
from simulation.plc.settings import PlcSettings


class _Log:
    """A log of JSON lines, each written at once.

    Lines that cannot be written are counted; the first one is reported on stderr.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self._path, self._torn = path, False
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(
                f"the PLC simulator cannot write its log {path}", got=error.strerror,
                expected="a file in a folder that exists", next="Name another path with --log.",
            ) from error

    def write(self, record: dict[str, object]) -> None:
        line = ("\n" if self._torn else "") + json.dumps(record) + "\n"
        written, reason = 0, "the disk is full"
        try:
            written = os.write(self._fd, line.encode())
        except OSError as error:
            reason = str(error.strerror)
        if lost := written < len(line):
            if not self.lost:
                print(f"The PLC simulator cannot write {self._path}: {reason}. It continues without its log.",
                      file=sys.stderr)
            self.lost += 1
        self._torn = lost and (self._torn or written > 0)  # half a line must not damage the next one

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def _realtime() -> Iterator[bool]:
    """Run with priority SCHED_FIFO 40 where that is allowed; yields whether it is."""
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(40))
    except (OSError, AttributeError):
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, *before)


def simulate(port: Path, log: Path, settings: PlcSettings, stop: Callable[[], bool] = lambda: False,
             faults: Path | None = None) -> dict[str, object]:
    """Simulate the PLC at ``port`` until its parts have passed, the line does not become ready, or ``stop()`` is true.

    Writes events to ``log`` as JSON lines (``t``: s since the start), the summary last, and returns the summary: see
    ``Conveyor.summary``. Its ``ended`` is "parts", "stopped" or "line not ready". Its ``own_lateness_ms`` is how late
    this process itself was at most: smaller figures say nothing about the line. ``stop`` is called at least every 50
    ms. faults: the folder of a scenario's fault board.

    Raises LinkError if the port cannot be opened, InputError if the log cannot.
    """
    with contextlib.ExitStack() as stack:
        made = Wire(port, settings.baud, noise=settings.noise, seed=settings.seed)
        wire = stack.enter_context(contextlib.closing(made))
        journal = stack.enter_context(contextlib.closing(_Log(log)))
        realtime = stack.enter_context(_realtime())
        disturbed = PlcFaults(faults, settings.seed)
        start = time.monotonic()

        def note(when: float, event: str, **fields: object) -> None:
            journal.write({"t": round(when - start, 6), "event": event, **fields})

        # Not seeded: a line that outlives this PLC would take the next one's commands for repetitions.
        conveyor = Conveyor(settings, session=secrets.randbits(16), sequence=secrets.randbits(16), now=start, note=note)
        note(start, "start", monotonic=start, unix=time.time())
        ended = "stopped"
        try:
            while not stop():
                now = _turn(wire, conveyor, disturbed, note)
                if (reason := conveyor.ended(now)) is not None:
                    ended = reason
                    break
        except KeyboardInterrupt:
            pass
        finally:
            now = time.monotonic()
            conveyor.stop(now)
            _flush(wire, conveyor, disturbed)
            summary = conveyor.summary(now) | {
                "ended": ended, "duration_s": round(now - start, 3), "realtime": realtime, "unsent_frames": wire.unsent,
                "log_lines_lost": journal.lost,
            }
            journal.write({"t": round(now - start, 6), "event": "summary", **summary})
        return summary


def _turn(wire: Wire, conveyor: Conveyor, disturbed: PlcFaults, note: Note) -> float:
    """Wait for bytes or the next thing that is due, and handle it. Returns the time afterwards."""
    disturbed.look(wire, conveyor)
    port = wire.fd
    timeout = min(max(conveyor.next_due() - time.monotonic(), 0.0), BEAT_S)
    readable, _, _ = select.select([] if port is None else [port], [], [], timeout)
    now = time.monotonic()
    # Bytes first, then what is due: where this process was held up, the line's messages were there in time.
    for frame in conveyor.reader.feed(disturbed.heard(wire.read())) if readable else ():
        if disturbed.takes(frame):
            conveyor.receive(frame, now)
    conveyor.advance(now)
    _flush(wire, conveyor, disturbed)
    if port is not None and wire.fd is None:
        note(now, "port_lost")
    return now


def _flush(wire: Wire, conveyor: Conveyor, disturbed: PlcFaults) -> None:
    for frame in conveyor.outgoing:
        if data := disturbed.said(frame):
            wire.write(data)
    conveyor.outgoing.clear()

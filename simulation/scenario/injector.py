"""Begins and ends the faults of a scenario.

Signals, restarts and busy processors it makes itself; the others read the fault board.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.base.errors import LinesideError
from edge.line_control.start import MODULE
from simulation.scenario.fault_board import FaultBoard
from simulation.scenario.file import Fault, Freeze, Hogs, Kill, Lasting, OfParts, Restart, ScenarioFile, kind_of

END_WAIT = 30.0  # s for a line to end


class RunningLine:
    """A line with faults. It may be started several times, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.ledgers: list[dict[str, Any] | None] = []
        self.exit_codes: list[int] = []
        self.messages: list[str] = []  # lines of stderr
        self._folder = folder
        self._thread: threading.Thread | None = None
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; returns at once."""
        command = [sys.executable, "-m", "simulation.scenario.faulty_line", str(self._folder / "faults"),
                   str(self._folder / "line.toml")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        self._thread.start()

    def _listen(self, stream: Any) -> None:
        with contextlib.suppress(ValueError):
            for text in stream:
                self.messages.append(text.rstrip("\n"))

    def children(self) -> dict[str, int]:
        """Process ids of "control" and "runtime"."""
        found: dict[str, int] = {}
        assert self.process is not None
        pid = self.process.pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{child}/cmdline").read_text()
                    if "faulty_line" in command:
                        found["control" if MODULE in command else "runtime"] = int(child)
        return found

    def pid(self, name: str) -> int | None:
        """Process id of "supervisor", "control" or "runtime"; None while there is none."""
        assert self.process is not None
        return self.process.pid if name == "supervisor" else self.children().get(name)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait until the line and its children have ended. Raises LinesideError if they do not."""
        assert self.process is not None and self._thread is not None
        children = list(self.children().values())
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            out, code = "", self.process.wait(END_WAIT)
            assert self.process.stdout is not None
            deadline = time.monotonic() + END_WAIT
            while any(map(_lives, children)):
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired("the line's children", END_WAIT)
                time.sleep(0.02)
            out = self.process.stdout.read()
        except subprocess.TimeoutExpired as error:
            for pid in [*children, self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise LinesideError("the line does not end",
                                got=f"nothing {END_WAIT:g} s after {signal.Signals(number).name}",
                                next="The last messages: " + " | ".join(self.messages[-5:])) from error
        self._thread.join(2)
        self.exit_codes.append(code)
        self.ledgers.append(json.loads(out) if out.strip().startswith("{") else None)
        self.process = None


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Injector:
    """Begins and ends the faults of a scenario as parts are triggered and time passes. Call `turn` often."""

    def __init__(self, file: ScenarioFile, board: FaultBoard, line: RunningLine, plc_pid: int) -> None:
        self._board, self._line, self._plc_pid = board, line, plc_pid
        self._waiting = [(number, fault) for number, fault in enumerate(file.faults) if not isinstance(fault, OfParts)]
        self._endings: list[tuple[float, int, Callable[[], None]]] = []  # when, number of the fault, what ends it
        self._hogs: list[subprocess.Popen[bytes]] = []

    def turn(self, part: int, since: float | None) -> None:
        """Begin and end what is due. part: the last one triggered. since: s since the first trigger, None before it.

        Raises LinesideError where a fault finds no process.
        """
        now = time.monotonic()
        for ending in [ending for ending in self._endings if ending[0] <= now]:
            self._endings.remove(ending)
            ending[2]()
            self._board.switch(ending[1], False)
        for number, fault in list(self._waiting):
            by_part = fault.at_part is not None and part >= fault.at_part
            by_time = fault.at_s is not None and since is not None and since >= fault.at_s
            if by_part or by_time:
                self._waiting.remove((number, fault))
                self._begin(number, fault, now)

    def _begin(self, number: int, fault: Fault, now: float) -> None:
        if isinstance(fault, (Kill, Restart)):
            self._end_process(number, fault)
            return
        self._board.switch(number, True)
        if isinstance(fault, Freeze):
            pid = self._plc_pid if fault.process == "plc" else self._line.pid(fault.process)
            if pid is None:
                raise LinesideError(f"fault {number + 1} found no process", got="none", expected=fault.process)
            os.kill(pid, signal.SIGSTOP)
            self._endings.append((now + fault.for_s, number, lambda: _continue(pid)))
        elif isinstance(fault, Hogs):
            hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(fault.count)]
            self._hogs += hogs
            self._endings.append((now + fault.for_s, number, lambda: _reap(hogs)))
        elif isinstance(fault, Lasting):
            self._endings.append((now + fault.for_s, number, lambda: None))

    def _end_process(self, number: int, fault: Kill | Restart) -> None:
        self._board.happened(number, event="begins")
        if isinstance(fault, Kill) and fault.process != "supervisor":
            pid = self._line.pid(fault.process)
            if pid is None:
                raise LinesideError(f"fault {number + 1} ({kind_of(fault)}) found no process", got="none",
                                    expected=fault.process)
            os.kill(pid, signal.SIGKILL)
        else:
            self._line.end(signal.SIGKILL if isinstance(fault, Kill) else signal.SIGTERM)
            time.sleep(fault.pause_s)
            self._line.start()
        self._board.happened(number, event="ends")

    def close(self) -> None:
        """End what is still active."""
        for _, number, end in self._endings:
            end()
            self._board.switch(number, False)
        _reap(self._hogs)


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _reap(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()

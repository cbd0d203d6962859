"""`lineside run`: starts line control and the runtime, each in a process of its own, and restarts either when it dies.

Both connect over a socket that belongs to this process, so that it does not matter which of them comes back, or when.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.base.errors import EXIT_ENGINE_LOST
from edge.line_control.job import ControlJob
from edge.line_file import LineFile, read_line_file
from edge.record.session import RECORD, NoRecording, Recording
from edge.run.processes import Processes
from edge.run.service import Service

RESTARTS, WITHIN = 5, 300.0  # at most so many restarts of each process within so many seconds
SIGNAL_WAIT = 0.5  # s for a signal, before the supervisor looks at the processes anyway
STARTING = 120.0  # s that a restarted runtime may take before the service manager's watchdog counts again
END_WAIT = 20.0  # s for the other process to end
SOCKET = "LINESIDE_CONTROL"  # environment variable: tells the runtime where line control is reached


def belt_file(journal: Path, line: Path) -> Path:
    """Where the parts on a line's belt are kept.

    The name holds a hash of the line file's path, since lines may share a folder.
    """
    return journal.with_name(f"{line.name}.{hashlib.sha256(str(line.resolve()).encode()).hexdigest()[:8]}.belt")


class _Child:
    """A process that is restarted when it dies, but not too often."""

    def __init__(self, name: str, start: Callable[[bool], subprocess.Popen[bytes]]) -> None:
        """start: starts it; gets whether that is a restart."""
        self.name, self._start = name, start
        self._starts: deque[float] = deque(maxlen=RESTARTS)
        self.restarts = 0
        self.process = start(False)

    def restart(self) -> bool:
        """Restart it; False where it died too often."""
        now = time.monotonic()
        if len(self._starts) == RESTARTS and now - self._starts[0] < WITHIN:
            return False
        self._starts.append(now)
        self.restarts += 1
        self.process = self._start(True)
        return True

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)


class Supervisor:
    """The processes of one line."""

    def __init__(self, path: Path, parts: int, say: Callable[[str], None], session: Path | None = None,
                 processes: Processes | None = None) -> None:
        """path: the line file. parts: end after so many (0: never). session: a folder to record the run in.

        processes: starts the two processes; as `lineside run` does unless given. Raises InputError for what cannot be
        used.
        """
        self._file: LineFile = read_line_file(path)
        self._path, self._parts, self._say = path, parts, say
        self._processes = processes or Processes()
        self._run_id = secrets.token_hex(8)
        self.ledger: dict[str, Any] | None = None  # line control's last counts, where the runtime could not print them
        self._recording = NoRecording() if session is None else Recording(session, path, say)
        self._restarts = 0
        self._stopping = False
        self._service = Service()

    def stop(self, *_: object) -> None:
        """Let the line end. A signal handler."""
        self._stopping = True

    def run(self) -> int:
        """Run until the line has ended. Returns its exit code."""
        folder = Path(tempfile.mkdtemp(prefix="lineside-"))
        self._address = folder / "control"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lifeline, held = os.pipe()  # the children see its end when this process dies, however it dies
        self._signals, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.stop)
        # a signal without a handler does not reach the wakeup descriptor
        signal.signal(signal.SIGCHLD, lambda *_: None)
        before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        try:
            self._listener.bind(str(self._address))
            self._listener.listen(4)
            code = self._watch(_Child("line control", self._start_control), _Child("the runtime", self._start_runtime))
            self._recording.end(code, self._restarts)
            return code
        finally:
            signal.set_wakeup_fd(before)
            self._listener.close()
            for descriptor in (held, self._lifeline, self._signals, wakeup):
                os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)

    def _start_control(self, restarted: bool) -> subprocess.Popen[bytes]:
        file, path = self._file, self._path
        return self._processes.control(ControlJob(
            plc={"kind": file.plc.kind, **file.plc.options(path.parent)}, link=file.plc.link,
            timing=file.belt.timing, pulse_ms=file.belt.pulse_ms,
            parts=self._parts, run_id=self._run_id, restarted=restarted,
            belt_file=belt_file(file.resolve(path, file.journal.path), path), listener=self._listener.fileno(),
            supervisor=self._lifeline, tape=self._recording.tape))

    def _start_runtime(self, restarted: bool) -> subprocess.Popen[bytes]:
        # it names this process
        environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
        environment[SOCKET] = str(self._address)
        if self._recording.folder is not None:
            environment[RECORD] = str(self._recording.folder)
        return self._processes.runtime(environment)

    def _watch(self, control: _Child, runtime: _Child) -> int:
        stopped, starting = False, 0.0
        while True:
            self._wait()
            if self._stopping and not stopped:
                stopped = True
                for child in (runtime, control):
                    child.end()
            code = control.process.poll()
            if code is not None and (code == 0 or self._stopping):
                return self._last(control, runtime)
            if code is not None and (code == 2 or not control.restart()):
                runtime.end()
                return self._gave_up(control, runtime, code)
            if code is not None:
                self._restarts += 1
                self._say(f"line control ended with {_named(code)} and was restarted")
            code = runtime.process.poll()
            if code in (0, 1) or (code == 2 and not runtime.restarts) or (code is not None and self._stopping):
                control.end()
                return self._last(control, runtime)
            if code is not None and not runtime.restart():
                control.end()
                return self._gave_up(runtime, control, code)
            if code is not None:
                self._restarts += 1
                self._say(f"the runtime ended with {_named(code)} and was restarted")
                starting = time.monotonic() + STARTING
            if time.monotonic() < starting:  # the runtime feeds the watchdog itself once it runs
                self._service.alive()

    def _wait(self) -> None:
        """Wait for a signal: a process has ended, or the line is to end."""
        if select.select([self._signals], [], [], SIGNAL_WAIT)[0]:
            os.read(self._signals, 4096)

    def _last(self, control: _Child, runtime: _Child) -> int:
        """One of them has ended as it should: wait for the other. Returns the runtime's exit code."""
        for child in (runtime, control):
            try:
                child.process.wait(END_WAIT)
            except subprocess.TimeoutExpired:
                self._say(f"{child.name} does not end; it was killed")
                child.end(signal.SIGKILL)
        assert control.process.stdout is not None
        printed, code = control.process.stdout.read(), runtime.process.wait()
        if code not in (0, 1, 2) and printed:
            self.ledger = json.loads(printed)
        return code if code >= 0 else 128 - code

    def _gave_up(self, child: _Child, other: _Child, code: int) -> int:
        """A process cannot be restarted: wait for both. Returns the line's exit code."""
        self._listener.close()  # the runtime must not wait for a line control that does not come
        self._last(*((child, other) if child.name == "line control" else (other, child)))
        if code != 2:
            self._say(f"{child.name} ended with {_named(code)} for the {RESTARTS + 1}th time in {WITHIN / 60:g} "
                      "minutes: the line ends")
        return code if code > 0 else EXIT_ENGINE_LOST if child.name == "the runtime" else 1


def _named(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

"""`lineside run`: starts line control and the runtime, each in a process of its own, and starts again what dies.

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
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.base.errors import EXIT_ENGINE_LOST
from edge.line_control.job import ControlJob
from edge.line_file import LineFile, read_line_file
from edge.record.session import RECORD, TapeWriter, begin_session, note
from edge.run.service import Service

RESTARTS, WITHIN = 5, 300.0  # of each process, and s in which so many are too many
LOOK = 0.5  # s between looks at the processes, if no signal comes
STARTING = 120.0  # s that a runtime may take to come back before the service manager's watchdog counts
FAREWELL = 20.0  # s that the other process has to end in
SOCKET = "LINESIDE_CONTROL"  # the variable that tells a runtime where line control is reached


def belt_file(journal: Path, line: Path) -> Path:
    """Where the parts on a line's belt are kept. Lines may share a journal, and so its folder."""
    return journal.with_name(f"{line.name}.{hashlib.sha256(str(line.resolve()).encode()).hexdigest()[:8]}.belt")


class _Child:
    """A process that is started again, within a bound."""

    def __init__(self, name: str, start: Callable[[bool], subprocess.Popen[bytes]]) -> None:
        self.name, self._start = name, start
        self._starts: deque[float] = deque(maxlen=RESTARTS)
        self.restarts = 0
        self.process = start(False)

    def again(self) -> bool:
        """Start it again; False where it died too often."""
        now = time.monotonic()
        if len(self._starts) == RESTARTS and now - self._starts[0] < WITHIN:
            return False
        self._starts.append(now)
        self.restarts += 1
        self.process = self._start(True)
        return True

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


class Supervisor:
    """The processes of one line."""

    def __init__(self, path: Path, parts: int, say: Callable[[str], None], record: Path | None = None) -> None:
        """parts: end after so many (0: never). record: a session to write. Raises InputError for what cannot be used."""
        self._file: LineFile = read_line_file(path)
        self._path, self._parts, self._say = path, parts, say
        self._run_id = secrets.token_hex(8)
        self.ledger: dict[str, Any] | None = None  # line control's last word, where the runtime could not tell it
        self._record = record
        self._tape: TapeWriter | None = None
        if record is not None:
            begin_session(record, path)
            self._tape = TapeWriter(record, say)
        self._restarts = 0
        self._stopping = False
        self._service = Service()

    def stop(self, *_: object) -> None:
        """Let the line end. A signal handler."""
        self._stopping = True

    def run(self) -> int:
        """Until the line has ended. Returns its exit code."""
        folder = Path(tempfile.mkdtemp(prefix="lineside-"))
        self._address = folder / "control"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lifeline, held = os.pipe()  # the children see its end when this process dies, however it dies
        self._signals, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it is told
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        try:
            self._listener.bind(str(self._address))
            self._listener.listen(4)
            code = self._watch(_Child("line control", self._start_control), _Child("the runtime", self._start_runtime))
            self._end_session(code)
            return code
        finally:
            signal.set_wakeup_fd(before)
            self._listener.close()
            for descriptor in (held, self._lifeline, self._signals, told):
                os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)

    def _end_session(self, code: int) -> None:
        if self._record is None or self._tape is None:
            return
        self._tape.close()
        if code == 2 and not self._restarts and not any((self._record / "frames").iterdir()):  # the line did not start
            shutil.rmtree(self._record, ignore_errors=True)
            return
        try:
            known = json.loads((self._record / "session.json").read_text())
            note(self._record, ended=time.time(), restarts=self._restarts,
                 complete=not self._restarts and not known.get("failed", True) and not self._tape.failed and self._tape.ends_whole())
        except (OSError, ValueError) as error:
            self._say(f"the session cannot be written any more: {error}")

    def _start_control(self, again: bool) -> subprocess.Popen[bytes]:
        file, path = self._file, self._path
        job = ControlJob(
            plc={**file.plc.model_dump(), "port": str(file.resolve(path, file.plc.port))}, timing=file.belt.timing,
            pulse_ms=file.belt.pulse_ms, parts=self._parts, run_id=self._run_id, restarted=again,
            belt_file=belt_file(file.resolve(path, file.journal.path), path), listener=self._listener.fileno(), supervisor=self._lifeline,
            tape=None if self._tape is None else self._tape.descriptor)
        tape = [] if self._tape is None else [self._tape.descriptor]
        return subprocess.Popen([sys.executable, "-m", "edge.line_control.process", job.to_json()],
                                stdout=subprocess.PIPE, pass_fds=[self._listener.fileno(), self._lifeline, *tape])

    def _start_runtime(self, again: bool) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}  # which names this process
        environment[SOCKET] = str(self._address)
        if self._record is not None:
            environment[RECORD] = str(self._record)
        return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment)

    def _watch(self, control: _Child, runtime: _Child) -> int:
        told, starting = False, 0.0
        while True:
            self._wait()
            if self._stopping and not told:
                told = True
                for child in (runtime, control):
                    child.end()
            code = control.process.poll()
            if code is not None and (code == 0 or self._stopping):
                return self._last(control, runtime)
            if code is not None and (code == 2 or not control.again()):
                runtime.end()
                return self._gave_up(control, runtime, code)
            if code is not None:
                self._restarts += 1
                self._say(f"line control ended with {_named(code)} and was started again")
            code = runtime.process.poll()
            if code in (0, 1) or (code == 2 and not runtime.restarts) or (code is not None and self._stopping):
                control.end()
                return self._last(control, runtime)
            if code is not None and not runtime.again():
                control.end()
                return self._gave_up(runtime, control, code)
            if code is not None:
                self._restarts += 1
                self._say(f"the runtime ended with {_named(code)} and was started again")
                starting = time.monotonic() + STARTING
            if time.monotonic() < starting:  # it feeds the watchdog itself once it runs
                self._service.alive()

    def _wait(self) -> None:
        """Until a signal says that a process ended, or that the line is to end."""
        if select.select([self._signals], [], [], LOOK)[0]:
            os.read(self._signals, 4096)

    def _last(self, control: _Child, runtime: _Child) -> int:
        """One of them has ended as it should: wait for the other."""
        for child in (runtime, control):
            try:
                child.process.wait(FAREWELL)
            except subprocess.TimeoutExpired:
                self._say(f"{child.name} does not end; it was killed")
                child.end(signal.SIGKILL)
        assert control.process.stdout is not None
        told, code = control.process.stdout.read(), runtime.process.wait()
        if code not in (0, 1, 2) and told:
            self.ledger = json.loads(told)
        return code if code >= 0 else 128 - code

    def _gave_up(self, child: _Child, other: _Child, code: int) -> int:
        self._last(*((child, other) if child.name == "line control" else (other, child)))
        if code != 2:
            self._say(f"{child.name} ended with {_named(code)} for the {RESTARTS + 1}th time in {WITHIN / 60:g} minutes: the line ends")
        return code if code > 0 else EXIT_ENGINE_LOST if child.name == "the runtime" else 1


def _named(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

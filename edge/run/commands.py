"""What a running line is told: `lineside reload`, `clear` and `challenge`, over a socket in the folder of the line's journal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.base.errors import BundleError, InputError, LinesideError

TIMEOUT = 120.0  # s that a line may take to load a bundle and to inspect its golden parts
POLL = 0.2  # s between looks at whether the line has ended
LONGEST = 65_536  # bytes of an answer


def socket_path(journal: Path, line: Path) -> Path:
    """Where the line of a line file listens. Lines may share a journal, and so its folder."""
    return journal.with_name(f"{line.name}.{hashlib.sha256(str(line.resolve()).encode()).hexdigest()[:8]}.socket")


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address of at most 108 bytes, as sockets need, for a path of any length."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class ReloadServer:
    """Listens in a thread of its own until it is closed."""

    def __init__(self, path: Path, commands: dict[str, Callable[[], str]]) -> None:
        """commands: each does it and returns what is to be told; a LinesideError is told in its place. Raises InputError."""
        self._path, self._commands = path, commands
        self._closing = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(POLL)
        path.unlink(missing_ok=True)  # of a line that was killed: two cannot run on one port
        try:
            with _short(path) as address:
                self._socket.bind(address)
            path.chmod(0o600)
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            raise InputError(f"cannot listen at {path}", got=error.strerror, expected="a local folder that is writable",
                             next="Mend `path` under [journal] in the line file.") from error
        self._thread = threading.Thread(target=self._serve, name="reload", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # nobody asks, no descriptor is left, or it was closed
                self._closing.wait(0.01)
                continue
            with connection, contextlib.suppress(OSError):  # whoever asked has gone
                connection.settimeout(POLL)
                command = self._commands.get(connection.recv(64).strip().decode(errors="replace"))
                if command is None:
                    continue
                connection.settimeout(TIMEOUT)
                connection.sendall(json.dumps(self._answer(command)).encode())

    def _answer(self, command: Callable[[], str]) -> dict[str, object]:
        try:
            return {"ok": True, "text": command()}
        except LinesideError as error:
            return {"ok": False, "text": str(error)}
        except Exception as error:  # a defect must not end the line that runs
            return {"ok": False, "text": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Stop listening; waits for a reload that is under way, since an engine that is half loaded aborts the process at its end."""
        self._closing.set()
        self._thread.join(TIMEOUT)
        self._socket.close()
        self._path.unlink(missing_ok=True)


def ask_to_reload(journal: Path, line: Path) -> str:
    """Ask the line with this journal, and return what it tells. Raises InputError where none runs, BundleError where the old one stays."""
    told = ask(journal, line, "reload")
    if not told["ok"]:
        raise BundleError(f"the line goes on with what it had: {told['text']}")
    return str(told["text"])


def ask(journal: Path, line: Path, command: str) -> dict[str, object]:
    """Give a command to the line with this journal; returns ``ok`` and ``text``. Raises InputError where none runs."""
    path = socket_path(journal, line)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(TIMEOUT)
        try:
            with _short(path) as address:
                asking.connect(address)
            asking.sendall(command.encode())
            asking.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: asking.recv(LONGEST), b""))
            told: dict[str, object] = json.loads(answer)
        except TimeoutError as error:
            raise InputError(f"the line of {line} did not answer", got=f"nothing for {TIMEOUT:g} s", next="See what it says.") from error
        except PermissionError as error:
            raise InputError(f"the line of {line} does not listen to you", got=error.strerror, expected=f"the user who runs it, for {path}",
                             next="Run the command as that user.") from error
        except (OSError, ValueError) as error:
            raise InputError(f"no line runs from {line}", got=f"no answer at {path}", expected="a line that is running",
                             next=f"Start it: lineside run {line}") from error
    return told

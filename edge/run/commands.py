"""Commands to a running line (`lineside reload`, `clear`, `challenge`) over a socket beside the line's journal."""

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

ANSWER_WAIT = 120.0  # s for the answer: a reload loads a bundle and inspects its golden parts
ACCEPT_WAIT = 0.2  # s for a connection, before the server looks at whether it is to close
REQUEST_WAIT = 0.2  # s for a client that has connected to send its command
ACCEPT_RETRY = 0.01  # s until the next try where no connection can be accepted
ANSWER_BYTES = 65_536  # read at once
COMMAND_BYTES = 64  # longer than any command


def socket_path(journal: Path, line: Path) -> Path:
    """Where the line of a line file listens.

    The name holds a hash of the line file's path, since lines may share a journal's folder.
    """
    return journal.with_name(f"{line.name}.{hashlib.sha256(str(line.resolve()).encode()).hexdigest()[:8]}.socket")


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address of at most 108 bytes, as sockets need, for a path of any length."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class CommandServer:
    """Takes commands, one at a time, in a thread of its own until it is closed."""

    def __init__(self, path: Path, commands: dict[str, Callable[[], str]]) -> None:
        """commands: by name, what carries a command out. It returns the text of the answer; a LinesideError makes the
        answer a failure.

        Raises InputError where the socket cannot be made.
        """
        self._path, self._commands = path, commands
        self._closing = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ACCEPT_WAIT)
        path.unlink(missing_ok=True)  # left by a line that was killed: two lines cannot run on one port
        try:
            with _short(path) as address:
                self._socket.bind(address)
            path.chmod(0o600)
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            raise InputError(f"cannot listen at {path}", got=error.strerror, expected="a local folder that is writable",
                             next="Fix `path` under [journal] in the line file.") from error
        self._thread = threading.Thread(target=self._serve, name="commands", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # nobody connects, no descriptor is left, or the server is closed
                self._closing.wait(ACCEPT_RETRY)
                continue
            with connection, contextlib.suppress(OSError):  # the client has gone
                connection.settimeout(REQUEST_WAIT)
                command = self._commands.get(connection.recv(COMMAND_BYTES).strip().decode(errors="replace"))
                if command is None:
                    continue
                connection.settimeout(ANSWER_WAIT)
                connection.sendall(json.dumps(self._answer(command)).encode())

    def _answer(self, command: Callable[[], str]) -> dict[str, object]:
        try:
            return {"ok": True, "text": command()}
        except LinesideError as error:
            return {"ok": False, "text": str(error)}
        except Exception as error:  # a defect must not end the line
            return {"ok": False, "text": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Stop listening. Waits for a command that runs: a process that ends while it loads an engine aborts."""
        self._closing.set()
        self._thread.join(ANSWER_WAIT)
        self._socket.close()
        self._path.unlink(missing_ok=True)


def ask_to_reload(journal: Path, line: Path) -> str:
    """Have the line with this journal reload its bundle; returns its message.

    Raises InputError where no line runs, BundleError where the old bundle stays live.
    """
    answer = ask(journal, line, "reload")
    if not answer["ok"]:
        raise BundleError(f"the old bundle stays live: {answer['text']}")
    return str(answer["text"])


def ask(journal: Path, line: Path, command: str) -> dict[str, object]:
    """Give a command to the line with this journal.

    Returns ``ok`` and ``text``. Raises InputError where no line runs.
    """
    path = socket_path(journal, line)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(ANSWER_WAIT)
        try:
            with _short(path) as address:
                asking.connect(address)
            asking.sendall(command.encode())
            asking.shutdown(socket.SHUT_WR)
            answer: dict[str, object] = json.loads(b"".join(iter(lambda: asking.recv(ANSWER_BYTES), b"")))
        except TimeoutError as error:
            raise InputError(f"the line of {line} did not answer", got=f"nothing for {ANSWER_WAIT:g} s",
                             next="Read the messages of `lineside run`.") from error
        except PermissionError as error:
            raise InputError(f"the line of {line} does not take commands from you", got=error.strerror,
                             expected=f"the user who runs it, for {path}",
                             next="Run the command as that user.") from error
        except (OSError, ValueError) as error:
            raise InputError(f"no line runs from {line}", got=f"no answer at {path}", expected="a line that is running",
                             next=f"Start it: lineside run {line}") from error
    return answer

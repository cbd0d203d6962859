"""The PLC's end of the wire: a pseudo serial port that is made here, or an existing port."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import termios
import tty
from pathlib import Path

import serial

from edge.base.errors import LinkError


class Wire:
    """The PLC's end of a new pty pair, or of an existing port. Never blocks, and outlives its peer.

    A free ``path`` (or a dangling link) becomes a link to the far end of a new pty, until ``close``. A character device
    is opened exclusively at ``baud``; when it is lost, ``fd`` is None. With probability ``noise``, what is sent or read
    at once has one bit flipped, one byte lost or one byte too many. Raises LinkError if ``path`` is anything else or
    cannot be opened.
    """

    def __init__(self, path: Path, baud: int, *, noise: float = 0.0, seed: int = 0) -> None:
        self.fd: int | None = None
        self.unsent = 0  # messages that the port did not take whole
        self._path, self._baud, self._noise, self._random = path, baud, noise, random.Random(seed)
        self._port: serial.Serial | None = None
        self._far: int | None = None
        self._pulled = False
        self._link = ""
        if path.exists():
            self._open_device()
        else:
            self._make_pty()

    def read(self) -> bytes:
        """The bytes that have come, at most 4096.

        Call it only when ``select`` says the port is readable: no bytes then mean a hang-up.
        """
        try:
            data = os.read(self.fd, 4096) if self.fd is not None else b""
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._lose()
        return self._noisy(data)

    def write(self, data: bytes) -> None:
        """Send one message.

        Like a wire it waits for nobody: what the port does not take is lost, and counted in ``unsent``.
        """
        data = self._noisy(data)
        try:
            sent = os.write(self.fd, data) if self.fd is not None else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = 0
            self._lose()
        self.unsent += sent < len(data)

    def plug(self, in_: bool) -> None:
        """Unplug a pty made here, or plug it in again: a new pty behind the same link.

        Does nothing to an existing port.
        """
        if in_ and self._pulled:
            self._make_pty()
        elif not in_ and self._far is not None:
            self.close()
            self._pulled = True
            return
        self._pulled = self._pulled and not in_

    def close(self) -> None:
        """Close the port, and remove the link if it is still ours."""
        if self._port is not None:
            self._lose()
        elif self._far is not None and self.fd is not None:
            os.close(self.fd)
            os.close(self._far)
            self.fd = self._far = None
            with contextlib.suppress(OSError):
                if os.readlink(self._path) == self._link:
                    os.unlink(self._path)

    def _make_pty(self) -> None:
        # The far end stays open here too: otherwise every read fails with EIO once the line closes its side.
        try:
            self.fd, self._far = os.openpty()
            tty.setraw(self._far)
            os.set_blocking(self.fd, False)
            self._link = os.ttyname(self._far)
            if self._path.is_symlink():
                self._path.unlink()
            self._path.symlink_to(self._link)
        except OSError as error:
            self.close()
            raise LinkError(
                f"the PLC simulator cannot make a pty with the link {self._path}", got=error.strerror,
                expected="a free path in a folder that can be written", next="Name another path with --port.",
            ) from error

    def _open_device(self) -> None:
        path = self._path
        try:
            found = path.stat()
            if not stat.S_ISCHR(found.st_mode):
                raise LinkError(
                    f"{path} is not a port", got="a folder" if stat.S_ISDIR(found.st_mode) else "a file",
                    expected="a serial port, or a free path", next="Name another path with --port.",
                )
            # Numbers of ptys are reused: a link older than its pty leads to somebody else's terminal.
            is_pty = os.major(found.st_rdev) in range(136, 144)
            if path.is_symlink() and is_pty and found.st_ctime > path.lstat().st_ctime + 1:
                raise LinkError(
                    f"{path} is a link from an earlier run", got=f"{os.readlink(path)}, which was made after the link",
                    expected="a port that the link was made for", next=f"Run: rm {path}",
                )
            self._port = serial.Serial(str(path), self._baud, timeout=0, exclusive=True)
            self.fd = self._port.fileno()
        # SerialException is an OSError, termios.error is not.
        except (OSError, ValueError, termios.error) as error:
            raise LinkError(
                f"the PLC simulator cannot open {path}", got=error,
                expected="a serial port that no other program has open",
                next=f"See which program has it: fuser -v {path}",
            ) from error

    def _noisy(self, data: bytes) -> bytes:
        if not data or self._random.random() >= self._noise:
            return data
        at, kind = self._random.randrange(len(data)), self._random.randrange(3)
        if kind == 0:
            return data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]
        return data[:at] + (data[at + 1 :] if kind == 1 else bytes([self._random.randrange(256)]) + data[at:])

    def _lose(self) -> None:
        if self._port is not None:
            with contextlib.suppress(OSError, termios.error):
                self._port.close()
            self._port = self.fd = None

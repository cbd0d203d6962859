"""What line control takes in from outside, written down, so that it can be played again and has to do the same once more.

Line control and its links are a function of what they take in: the moments of the clock, the bytes of the port, what the runtime says, and
random numbers. Each of these goes through a `Tape`. `LiveTape` lets it through, `RecordingTape` also writes it down, as lines of text, and
`ReplayTape` gives what was written and asks nothing outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import serial

from edge.plc.common import PORT_ERRORS

Value = TypeVar("Value")
KEPT = 64 << 20  # bytes of the tape that wait for who writes it to the disk; then the tape ends
PIPE = 1 << 20  # bytes
F_SETPIPE_SZ = 1031
RAISED = {kind.__name__: kind for kind in (serial.SerialException, serial.SerialTimeoutException, serial.PortNotOpenError, BlockingIOError,
                                           ValueError, TypeError)}


class Tape(Protocol):
    """What comes in from outside comes through here."""

    live: bool  # False where nothing outside is to be asked
    now: Callable[[], float]  # s of time.monotonic

    def take(self, name: str, produce: Callable[[], Value], encode: Callable[[Value], Any] = ..., decode: Callable[[Any], Value] = ...
             ) -> Value:
        """What ``produce`` gives or raises. encode, decode: between that and what JSON knows."""

    def sent(self, data: bytes | str) -> None:
        """This goes out on the wire now."""

    def spin(self, until: float) -> None:
        """Look at the clock until it shows ``until``."""

    def flush(self) -> None:
        """Hand over what was written down; never waits."""


class LiveTape:
    """Writes nothing down."""

    live = True

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.monotonic

    def take(self, name: str, produce: Callable[[], Value], encode: Callable[[Value], Any] = lambda value: value,
             decode: Callable[[Any], Value] = lambda value: value) -> Value:
        return produce()

    def sent(self, data: bytes | str) -> None:
        return

    def spin(self, until: float) -> None:
        while time.monotonic() < until:
            continue

    def flush(self) -> None:
        return


class RecordingTape(LiveTape):
    """Writes to a pipe, whose other end is read by a process that may wait for its disk."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: the end of the pipe."""
        os.set_blocking(descriptor, False)
        with contextlib.suppress(OSError):  # a smaller one does too
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, PIPE)
        self.now = self._now
        self._descriptor = descriptor
        self._lines: list[str] = []
        self._waiting = bytearray(b"\n")  # the last line of a run that was killed may be cut off
        self._ended = False

    def _now(self) -> float:
        now = time.monotonic()
        self._lines.append(f"t{now!r}")
        return now

    def take(self, name: str, produce: Callable[[], Value], encode: Callable[[Value], Any] = lambda value: value,
             decode: Callable[[Any], Value] = lambda value: value) -> Value:
        try:
            value = produce()
        except PORT_ERRORS as error:
            self._lines.append(f"e{name} {json.dumps([type(error).__name__, str(error)])}")
            raise
        self._lines.append(f"v{name} {json.dumps(encode(value))}")
        return value

    def sent(self, data: bytes | str) -> None:
        self._lines.append(f"w{data.hex() if isinstance(data, bytes) else data}")

    def flush(self) -> None:
        if self._ended:
            self._lines.clear()
            return
        if self._lines:
            self._waiting += ("\n".join(self._lines) + "\n").encode()
            self._lines.clear()
        try:
            while self._waiting:
                del self._waiting[:os.write(self._descriptor, self._waiting)]
        except BlockingIOError:
            self._ended = len(self._waiting) > KEPT
        except OSError:  # nobody reads it any more
            self._ended = True

    def finish(self, seconds: float) -> None:
        """Hand over the rest, for so long at most."""
        deadline = time.monotonic() + seconds
        self.flush()
        while self._waiting and not self._ended and time.monotonic() < deadline:
            time.sleep(0.005)
            self.flush()


def _raised(name: str, text: str) -> BaseException:
    kind = RAISED.get(name, OSError)
    return kind() if kind is serial.PortNotOpenError else kind(text)


class TapeEndedError(Exception):
    """Nothing more was written down."""


class DivergedError(Exception):
    """What is played again does something else than what was recorded."""


class ReplayTape:
    """Gives what was written down, in its order. Once that cannot be, it cannot again: ``stopped`` says why."""

    live = False

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        """lines: numbered, as they were written, of one run of line control."""
        self.now = self._now
        self.bytes = 0  # that went out as they had
        self.stopped: TapeEndedError | DivergedError | None = None  # asyncio keeps what is raised to itself
        self._lines = lines
        self.swap: Callable[[str, Any], Any] = lambda name, value: value  # what another bundle says in place of the recorded one

    def _next(self) -> tuple[int, str]:
        if self.stopped is not None:
            raise self.stopped
        number, line = next(self._lines, (0, ""))
        if not line:
            self.stopped = TapeEndedError()
            raise self.stopped
        return number, line

    def _diverged(self, number: int, line: str, now: str) -> DivergedError:
        self.stopped = DivergedError(f"line {number} of the tape: recorded {line[:200]!r}, now {now[:200]!r}")
        return self.stopped

    def _error(self, number: int, line: str, text: str) -> BaseException:
        try:
            return _raised(*json.loads(text))
        except (ValueError, TypeError):
            return self._diverged(number, line, "an error")

    def _now(self) -> float:
        number, line = self._next()
        if line[0] != "t":
            raise self._diverged(number, line, "a look at the clock")
        try:
            return float(line[1:])
        except ValueError as error:
            raise self._diverged(number, line, "a look at the clock") from error

    def take(self, name: str, produce: Callable[[], Value], encode: Callable[[Value], Any] = lambda value: value,
             decode: Callable[[Any], Value] = lambda value: value) -> Value:
        number, line = self._next()
        kind, _, text = line.partition(" ")
        if kind == f"e{name}":
            raise self._error(number, line, text)
        if kind != f"v{name}":
            raise self._diverged(number, line, name)
        try:
            return decode(self.swap(name, json.loads(text)))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._diverged(number, line, f"{name}: the tape is damaged ({type(error).__name__})") from error

    def sent(self, data: bytes | str) -> None:
        number, line = self._next()
        text = f"w{data.hex() if isinstance(data, bytes) else data}"
        if line != text:
            raise self._diverged(number, line, text)
        self.bytes += len(data)

    def spin(self, until: float) -> None:
        return

    def flush(self) -> None:
        return

"""Records everything that line control takes in from outside, so that a replay must do the same again.

What line control and its link do depends only on their inputs: the clock, the bytes of the port, the runtime's
messages, and random numbers. Each input goes through a `Tape`. `LiveTape` passes it on, `RecordingTape` also writes it
down as a line of text, and `ReplayTape` returns what was written down without asking anything outside.
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
MAX_WAITING = 64 << 20  # bytes that wait for the process that writes them to the disk; with more, the recording ends
PIPE_SIZE = 1 << 20  # bytes
F_SETPIPE_SZ = 1031
RAISED = {kind.__name__: kind for kind in (
    serial.SerialException, serial.SerialTimeoutException, serial.PortNotOpenError, BlockingIOError, ValueError,
    TypeError)}


class Tape(Protocol):
    """Every input from outside goes through here."""

    live: bool  # False in a replay: nothing outside may be asked
    now: Callable[[], float]  # s of time.monotonic

    def take(self, name: str, produce: Callable[[], Value], encode: Callable[[Value], Any] = ...,
             decode: Callable[[Any], Value] = ...
             ) -> Value:
        """What ``produce`` returns or raises. encode, decode: convert that to JSON values and back."""

    def sent(self, data: bytes | str) -> None:
        """Note what goes out on the wire now."""

    def spin(self, until: float) -> None:
        """Busy-wait until the clock shows ``until``."""

    def flush(self) -> None:
        """Hand over what was recorded. Never waits."""


class LiveTape:
    """Records nothing."""

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
    """Writes to a pipe. The process at its other end may wait for its disk; this one never does."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: of the pipe's writing end."""
        os.set_blocking(descriptor, False)
        with contextlib.suppress(OSError):  # a smaller one works too
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, PIPE_SIZE)
        self.now = self._now
        self._descriptor = descriptor
        self._lines: list[str] = []
        self._waiting = bytearray(b"\n")  # ends a line that a killed process left incomplete
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
            self._ended = len(self._waiting) > MAX_WAITING
        except OSError:  # nobody reads the pipe any more
            self._ended = True

    def finish(self, seconds: float) -> None:
        """Hand over the rest, for at most so many seconds."""
        deadline = time.monotonic() + seconds
        self.flush()
        while self._waiting and not self._ended and time.monotonic() < deadline:
            time.sleep(0.005)
            self.flush()


def _raised(name: str, text: str) -> BaseException:
    kind = RAISED.get(name, OSError)
    return kind() if kind is serial.PortNotOpenError else kind(text)


class TapeEndedError(Exception):
    """The tape has no further entry."""


class DivergedError(Exception):
    """The replay does something else than the recorded run."""


class ReplayTape:
    """Returns the recorded inputs in their order, until the replay differs or the tape ends: ``stopped`` says which."""

    live = False

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        """lines: (line number, text) of one run of line control."""
        self.now = self._now
        self.bytes = 0  # sent, the same as recorded
        self.stopped: TapeEndedError | DivergedError | None = None  # kept here, since asyncio swallows what is raised
        self._lines = lines
        # puts another bundle's verdicts in place of the recorded ones
        self.swap: Callable[[str, Any], Any] = lambda name, value: value

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

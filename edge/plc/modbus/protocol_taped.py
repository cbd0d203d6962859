"""A serial port whose bytes go through a `Tape`.

pyserial finds this module by its name, for ports that begin with ``taped://``.
"""

from __future__ import annotations

from typing import Any

import serial

from edge.plc.tape import LiveTape, Tape

SCHEME = "taped://"
NO_FILE = -2  # the descriptor of the port in a replay
tape: Tape = LiveTape()  # set before a port is opened


class Serial:
    """A port that never waits: the part of pyserial's Serial that pymodbus uses."""

    def __init__(self, port: None, **options: Any) -> None:
        self._tape, self._options = tape, {**options, "timeout": 0}
        self._port: serial.Serial | None = None
        self.port = ""  # set by pyserial
        self.timeout = self.write_timeout = 0.0  # set by pymodbus, to these values

    def open(self) -> None:
        """Open the port."""
        self._tape.take("open", self._open)

    def _open(self) -> None:
        self._port = serial.Serial(self.port.removeprefix(SCHEME), write_timeout=0, **self._options)

    def fileno(self) -> int:
        """For the event loop."""
        return NO_FILE if self._port is None else int(self._port.fileno())

    def read(self, size: int) -> bytes:
        """The bytes that have come in, ``size`` at most."""
        return self._tape.take("read", lambda: self._read(size), bytes.hex, bytes.fromhex)

    def _read(self, size: int) -> bytes:
        assert self._port is not None
        return bytes(self._port.read(size))

    def write(self, data: bytes) -> int:
        """Send; returns how many bytes the port accepted."""
        self._tape.sent(data)
        return self._tape.take("written", lambda: self._write(data))

    def _write(self, data: bytes) -> int:
        assert self._port is not None
        return self._port.write(data) or 0

    def close(self) -> None:
        """Close the port."""
        if self._port is not None:
            self._port.close()

"""A serial port whose bytes go through a tape. pyserial finds this module by its name for ports that begin with ``taped://``."""

from __future__ import annotations

from typing import Any

import serial

from edge.plc.tape import LiveTape, Tape

SCHEME = "taped://"
NO_FILE = -2  # the descriptor of a port that is played
tape: Tape = LiveTape()  # set by who opens a port


class Serial:
    """A port that never waits, as pymodbus uses one."""

    def __init__(self, port: None, **options: Any) -> None:
        self._tape, self._options = tape, {**options, "timeout": 0}
        self._port: serial.Serial | None = None
        self.port = ""  # set by pyserial
        self.timeout = self.write_timeout = 0.0  # set by pymodbus, to what they are

    def open(self) -> None:
        """Open it."""
        self._tape.take("open", self._open)

    def _open(self) -> None:
        self._port = serial.Serial(self.port.removeprefix(SCHEME), write_timeout=0, **self._options)

    def fileno(self) -> int:
        """For the loop."""
        return NO_FILE if self._port is None else int(self._port.fileno())

    def read(self, size: int) -> bytes:
        """What has come in."""
        return self._tape.take("read", lambda: bytes(self._port.read(size)), bytes.hex, bytes.fromhex)  # type: ignore[union-attr]

    def write(self, data: bytes) -> int:
        """Returns how many bytes were taken."""
        self._tape.sent(data)
        return self._tape.take("written", lambda: self._port.write(data) or 0)  # type: ignore[union-attr]

    def close(self) -> None:
        """Close the port."""
        if self._port is not None:
            self._port.close()

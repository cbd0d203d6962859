"""What every PLC link does."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from edge.part.events import Event, Report


class LineStatus(IntEnum):
    """What the line's heartbeat says."""

    OFFLINE = 0
    STARTING = 1
    READY = 2
    DEGRADED = 3
    FAULT = 4


class PlcLink(Protocol):
    """A connection to a PLC. Times are seconds of ``time.monotonic``. A lost port is retried inside and told as an event."""

    room: int  # how many more triggers are acknowledged as taken

    @property
    def idle(self) -> bool:
        """Whether every command was acknowledged or given up."""

    def open(self) -> None:
        """Open the port. Raises LinkError when it does not exist or somebody else has it."""

    def report(self, report: Report) -> None:
        """Tell a verdict."""

    def fault(self, code: int, part: int = 0) -> None:
        """Tell a fault, or with code 0 that it is over."""

    def pulse(self, part: int, due: float, width_ms: int, count: int | None = None) -> None:
        """Have the ejector fire for ``width_ms`` when this part stands before it: at ``due``, or when the encoder shows ``count``."""

    def heartbeat(self, status: LineStatus) -> None:
        """Say that the line lives; called at least every 50 ms."""

    def read_events(self, timeout: float, wake: int) -> list[Event]:
        """What has come in, waiting at most ``timeout`` s, or until the file descriptor ``wake`` can be read.

        What the call before gave counts as kept now, and is acknowledged.
        """

    def counters(self) -> dict[str, int]:
        """What went wrong on the wire so far."""

    def close(self) -> None:
        """Close the port."""

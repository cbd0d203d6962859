"""The interface of a PLC link."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from edge.part.events import Event, Report


class LineStatus(IntEnum):
    """The state of the line in its heartbeat."""

    OFFLINE = 0
    STARTING = 1
    READY = 2
    DEGRADED = 3
    FAULT = 4


class PlcLink(Protocol):
    """A connection to a PLC. Times are seconds of ``time.monotonic``.

    The link reopens a lost port itself; `LinkLost` and `LinkBack` report it. Used by one thread.
    """

    room: int  # how many more triggers are accepted; the next ones are refused

    @property
    def idle(self) -> bool:
        """Whether every command was acknowledged or given up, and nothing waits to be sent."""

    def open(self) -> None:
        """Open the port. Raises LinkError when it does not exist, or another program has it open."""

    def report(self, report: Report) -> None:
        """Send a verdict. Once the PLC has it, `read_events` gives `VerdictDelivered`."""

    def fault(self, code: int, part: int = 0) -> None:
        """Send a fault code, see `FaultCode`; 0: no fault is active any more."""

    def pulse(self, part: int, due: float, width_ms: int, count: int | None = None) -> None:
        """Make the ejector fire for ``width_ms`` when this part is before it: at ``due``, or when the encoder reaches
        ``count``.

        If the PLC does not take the command, `read_events` gives `OrderFailed`.
        """

    def heartbeat(self, status: LineStatus) -> None:
        """Send a heartbeat. Called at least every 50 ms."""

    def read_events(self, timeout: float, wake: int) -> list[Event]:
        """What has come in. Waits for it at most ``timeout`` s, and no longer than until the descriptor ``wake`` can be
        read.

        The caller has saved what the previous call returned: this call acknowledges it to the PLC.
        """

    def counters(self) -> dict[str, int]:
        """What went wrong on the wire so far, by name."""

    def close(self) -> None:
        """Close the port."""

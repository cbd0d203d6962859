"""Messages between line control and the runtime: pickled lists in packets of a SEQPACKET socket.

The socket lies in a folder that only its user can open, so nobody else can send a pickle.

A side that dies closes its socket, which the other side sees at once; no timeout would be as fast.
"""

from __future__ import annotations

import pickle
import socket
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge.line_control.parts import Ledger
from edge.part.events import Alarm, Challenge, Clear, FaultOver, PartVerdict, RuntimeReady, Stop
from edge.part.verdict import Cause, Verdict

MAX_PACKET = 65_536  # bytes
MAX_PER_PACKET = 50  # messages
MAX_WAITING = 20_000  # messages kept for a side that does not read; with more it is taken for dead


@dataclass(frozen=True)
class Hello:
    """Line control's first message to a runtime.

    realtime: whether it got its real-time priority and its locked memory.
    """

    run_id: str
    realtime: bool
    why_not: str = ""


@dataclass(frozen=True)
class JournalWritten:
    """The runtime has written the outcomes of these triggers into the journal."""

    triggers: list[int]


@dataclass(frozen=True)
class OperatorMessage:
    """Text for the operator."""

    text: str


@dataclass(frozen=True)
class Counts:
    """The ledger, and the PLC link's counters, so far."""

    ledger: Ledger
    wire: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ControlEnded:
    """Line control's last message, when it has ended normally."""


class ProcessEvent(str, Enum):
    """What happens to the processes around line control. The values are part of the format of recorded sessions."""

    STOP = "stop"  # a signal asks line control to stop
    CONNECTED = "connected"  # a runtime has connected; the one before it is gone
    CLOSED = "closed"  # the runtime is gone
    ORPHANED = "orphaned"  # the supervisor is gone


# The runtime's messages by their names in recorded sessions. A class may be renamed; these names may not change, and
# neither may the names of the classes' fields.
RECORDED_NAMES: dict[str, type] = {
    "Written": JournalWritten, "RuntimeReady": RuntimeReady, "PartVerdict": PartVerdict, "Alarm": Alarm,
    "FaultOver": FaultOver, "Clear": Clear, "Challenge": Challenge, "Stop": Stop}
NAME_OF = {kind: name for name, kind in RECORDED_NAMES.items()}
ENUMS = {"verdict": Verdict, "cause": Cause}  # fields that hold a member of an enum


def encode(received: list[Any]) -> list[Any]:
    """Messages of the runtime and `ProcessEvent`, as a recorded session has them: JSON values."""
    return [item.value if isinstance(item, ProcessEvent) else [NAME_OF[type(item)], vars(item)] for item in received]


def decode(recorded: list[Any]) -> list[Any]:
    """What `encode` was given. Raises KeyError, ValueError or TypeError for anything else."""
    return [ProcessEvent(item) if isinstance(item, str) else RECORDED_NAMES[item[0]](**{
        name: ENUMS[name](value) if name in ENUMS and value is not None else value for name, value in item[1].items()})
        for item in recorded]


class Channel:
    """One end of the connection. No method waits."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._waiting: deque[Any] = deque()
        self._packet, self._packed = b"", 0  # the next packet, and how many of the waiting messages it holds
        self._gave_up = False  # the other side does not read any more; what it sent before can still be received
        self.closed = False  # the other side has closed, and everything it sent was received
        self.urgent = False  # whether an urgent message waits

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Send a message; `flush` retries what the other side has no room for.

        A message to a side that is gone is dropped.
        """
        self.put(message)
        self.flush()

    def put(self, message: Any, urgent: bool = True) -> None:
        """Leave a message for the next `flush`. It sends several in one packet, since each packet wakes the other side.

        urgent: False for a message that may wait for a later flush; it does not set ``urgent``.
        """
        self._waiting.append(message)
        self.urgent |= urgent

    def _pack(self) -> None:
        number = min(MAX_PER_PACKET, len(self._waiting))
        while not self._packed:
            packet = pickle.dumps([self._waiting[index] for index in range(number)], pickle.HIGHEST_PROTOCOL)
            if number == 1 or len(packet) <= MAX_PACKET:
                self._packet, self._packed = packet, number
            number //= 2

    def flush(self) -> None:
        """Send the waiting messages as far as the other side has room, and keep the rest."""
        self.urgent = False
        while self._waiting and not self._gave_up:
            self._pack()
            try:
                self._socket.send(self._packet)
            except BlockingIOError:
                self._gave_up = len(self._waiting) > MAX_WAITING
                break
            except OSError:
                self._gave_up = True
                break
            for _ in range(self._packed):
                self._waiting.popleft()
            self._packed = 0
        if self._gave_up:
            self._waiting.clear()

    def receive(self, most: int = 1000) -> list[Any]:
        """The messages that have arrived, about ``most`` of them. Sets ``closed`` when the other side has closed."""
        messages: list[Any] = []
        while not self.closed and len(messages) < most:
            try:
                data = self._socket.recv(MAX_PACKET)
            except BlockingIOError:
                break
            except ConnectionResetError:  # the other side closed without reading everything; what it sent comes next
                continue
            except OSError:
                data = b""
            if not data:
                self.closed = True
                break
            messages += pickle.loads(data)
        return messages

    def close(self) -> None:
        """Close this end; the other side sees that."""
        self.closed = self._gave_up = True
        self._socket.close()

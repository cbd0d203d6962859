"""Messages between line control and the runtime: pickled lists of them, in packets of a SEQPACKET socket in a folder of the user's own.

The end of the file means that the other side died: the kernel says so at once, which no time-out does.
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

LONGEST = 65_536  # bytes of a packet
TOGETHER = 50  # messages in a packet, at most
WAITING = 20_000  # messages kept for a side that does not read; then it counts as dead


@dataclass(frozen=True)
class Welcome:
    """Line control's first message. realtime: whether it has the priority that it needs."""

    session: str
    realtime: bool
    why_not: str = ""


@dataclass(frozen=True)
class Written:
    """The journal has these outcomes."""

    triggers: list[int]


@dataclass(frozen=True)
class Told:
    """Text for the operator."""

    text: str


@dataclass(frozen=True)
class State:
    """The counts of the ledger and of the wire so far."""

    ledger: Ledger
    wire: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """Line control has ended, as it should."""


class Heard(str, Enum):
    """What line control hears besides the runtime's messages."""

    STOP = "stop"  # a signal asks to stop
    CONNECTED = "connected"  # a runtime; the one before it is gone
    CLOSED = "closed"  # the runtime is gone
    ORPHANED = "orphaned"  # the supervisor is gone


FROM_RUNTIME = {kind.__name__: kind for kind in (Written, RuntimeReady, PartVerdict, Alarm, FaultOver, Clear, Challenge, Stop)}
ENUMS = {"verdict": Verdict, "cause": Cause}


def encode(heard: list[Any]) -> list[Any]:
    """What line control heard, as JSON knows it."""
    return [item.value if isinstance(item, Heard) else [type(item).__name__, vars(item)] for item in heard]


def decode(data: list[Any]) -> list[Any]:
    """The same back."""
    return [Heard(item) if isinstance(item, str) else FROM_RUNTIME[item[0]](**{
        name: ENUMS[name](value) if name in ENUMS and value is not None else value for name, value in item[1].items()}) for item in data]


class Channel:
    """One end. ``send`` and ``receive`` never wait."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._waiting: deque[Any] = deque()
        self._packet, self._packed = b"", 0  # the next packet, and how many of those that wait are in it
        self._deaf = False  # the other side reads nothing any more; what it said before is still to be read
        self.closed = False
        self.hurried = False  # whether something waits that is in a hurry

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Send, or keep it until the other side reads; `flush` goes on with that. A message to a side that is gone is dropped."""
        self.put(message)
        self.flush()

    def put(self, message: Any, hurry: bool = True) -> None:
        """Have a message sent by the next `flush`, together with others: each packet wakes the other side.

        hurry: False for one that may wait longer, see ``hurried``.
        """
        self._waiting.append(message)
        self.hurried |= hurry

    def _pack(self) -> None:
        number = min(TOGETHER, len(self._waiting))
        while not self._packed:
            packet = pickle.dumps([self._waiting[index] for index in range(number)], pickle.HIGHEST_PROTOCOL)
            if number == 1 or len(packet) <= LONGEST:
                self._packet, self._packed = packet, number
            number //= 2

    def flush(self) -> None:
        """Send what waits as far as the other side takes it; it keeps the rest for the next time."""
        self.hurried = False
        while self._waiting and not self._deaf:
            self._pack()
            try:
                self._socket.send(self._packet)
            except BlockingIOError:
                self._deaf = len(self._waiting) > WAITING
                break
            except OSError:
                self._deaf = True
                break
            for _ in range(self._packed):
                self._waiting.popleft()
            self._packed = 0
        if self._deaf:
            self._waiting.clear()

    def receive(self, most: int = 1000) -> list[Any]:
        """What has come in, not much more than ``most``; sets ``closed`` at the end of the file."""
        messages: list[Any] = []
        while not self.closed and len(messages) < most:
            try:
                data = self._socket.recv(LONGEST)
            except BlockingIOError:
                break
            except ConnectionResetError:  # it went with messages unread; what it sent comes next
                continue
            except OSError:
                data = b""
            if not data:
                self.closed = True
                break
            messages += pickle.loads(data)
        return messages

    def close(self) -> None:
        """Close; the other side sees the end of the file."""
        self.closed = self._deaf = True
        self._socket.close()

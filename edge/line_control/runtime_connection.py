"""Line control's connection to the runtime, and what it learns about the processes around it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Any, Protocol

from edge.line_control.messages import Channel, Hello, ProcessEvent


class Runtime(Protocol):
    """The runtime, as line control sees it."""

    def fileno(self) -> int:
        """A descriptor that can be read when `receive` has something."""

    def wait(self, seconds: float) -> None:
        """Wait until `receive` has something, for at most ``seconds``."""

    def receive(self) -> list[Any]:
        """Messages of the runtime, and `ProcessEvent`; empty if there is nothing."""

    def put(self, message: object, urgent: bool = True) -> None:
        """Leave a message for the next `flush`; dropped if no runtime is connected."""

    def flush(self, urgent_only: bool = False) -> None:
        """Send the messages that wait. urgent_only: unless none of them is urgent."""


class RuntimeConnection:
    """The real one: accepts a runtime's connection, one at a time. Used by one thread; only `wait` waits."""

    def __init__(self, listener: socket.socket, supervisor: int, stop_asked: threading.Event, hello: Hello) -> None:
        """listener: where the runtime connects.

        supervisor: a descriptor of a pipe that ends when the supervisor dies.
        """
        self._listener, self._supervisor, self._stop_asked, self._hello = listener, supervisor, stop_asked, hello
        self._channel: Channel | None = None
        self._poll = select.epoll()
        listener.setblocking(False)
        for descriptor in (listener.fileno(), supervisor):
            self._poll.register(descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        """See `Runtime`."""
        return self._poll.fileno()

    def wait(self, seconds: float) -> None:
        """See `Runtime`."""
        self._poll.poll(seconds)

    def receive(self) -> list[Any]:
        """See `Runtime`."""
        received: list[Any] = [ProcessEvent.STOP] if self._stop_asked.is_set() else []
        for descriptor, _ in self._poll.poll(0):
            if descriptor == self._listener.fileno():
                self._accept(received)
            elif descriptor == self._supervisor:
                self._poll.unregister(self._supervisor)
                received.append(ProcessEvent.ORPHANED)
            elif self._channel is not None:
                received += self._channel.receive()
                if self._channel.closed:
                    self._drop()
                    received.append(ProcessEvent.CLOSED)
        return received

    def _accept(self, received: list[Any]) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            if self._channel is not None:
                self._drop()
            self._channel = Channel(connection)
            self._poll.register(self._channel.fileno(), select.EPOLLIN)
            self._channel.send(self._hello)
            received.append(ProcessEvent.CONNECTED)

    def _drop(self) -> None:
        assert self._channel is not None
        self._poll.unregister(self._channel.fileno())
        self._channel.close()
        self._channel = None

    def put(self, message: object, urgent: bool = True) -> None:
        """See `Runtime`."""
        if self._channel is not None:
            self._channel.put(message, urgent)

    def flush(self, urgent_only: bool = False) -> None:
        """See `Runtime`."""
        if self._channel is not None and (self._channel.urgent or not urgent_only):
            self._channel.flush()

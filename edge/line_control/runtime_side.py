"""What line control hears of the processes around it, and the runtime's channel."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Any, Protocol

from edge.line_control.messages import Channel, Heard, Welcome


class Runtime(Protocol):
    """The runtime, as line control sees it."""

    def fileno(self) -> int:
        """Can be read when there is something to hear."""

    def wait(self, seconds: float) -> None:
        """Until there is something to hear."""

    def hear(self) -> list[Any]:
        """What there is: messages of the runtime, and `Heard`."""

    def tell(self, message: object, hurry: bool = True) -> None:
        """Tell the runtime, if there is one, with the next `flush`."""

    def flush(self, hurried_only: bool = False) -> None:
        """Send what was told. hurried_only: unless nothing of it is in a hurry."""


class RuntimeSide:
    """Used by line control alone; nothing here waits."""

    def __init__(self, listener: socket.socket, supervisor: int, asked_to_stop: threading.Event, welcome: Welcome) -> None:
        """listener: where the runtime connects. supervisor: a file descriptor that ends when the supervisor is gone."""
        self._listener, self._supervisor, self._asked_to_stop, self._welcome = listener, supervisor, asked_to_stop, welcome
        self._channel: Channel | None = None
        self._poll = select.epoll()
        listener.setblocking(False)
        for descriptor in (listener.fileno(), supervisor):
            self._poll.register(descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        """Can be read when there is something to hear."""
        return self._poll.fileno()

    def wait(self, seconds: float) -> None:
        """Until there is something to hear."""
        self._poll.poll(seconds)

    def hear(self) -> list[Any]:
        """What there is: messages of the runtime, and `Heard`."""
        heard: list[Any] = [Heard.STOP] if self._asked_to_stop.is_set() else []
        for descriptor, _ in self._poll.poll(0):
            if descriptor == self._listener.fileno():
                self._accept(heard)
            elif descriptor == self._supervisor:
                self._poll.unregister(self._supervisor)
                heard.append(Heard.ORPHANED)
            elif self._channel is not None:
                heard += self._channel.receive()
                if self._channel.closed:
                    self._drop()
                    heard.append(Heard.CLOSED)
        return heard

    def _accept(self, heard: list[Any]) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            if self._channel is not None:
                self._drop()
            self._channel = Channel(connection)
            self._poll.register(self._channel.fileno(), select.EPOLLIN)
            self._channel.send(self._welcome)
            heard.append(Heard.CONNECTED)

    def _drop(self) -> None:
        assert self._channel is not None
        self._poll.unregister(self._channel.fileno())
        self._channel.close()
        self._channel = None

    def tell(self, message: object, hurry: bool = True) -> None:
        """Tell the runtime, if there is one, with the next `flush`."""
        if self._channel is not None:
            self._channel.put(message, hurry)

    def flush(self, hurried_only: bool = False) -> None:
        """Send what was told. hurried_only: unless nothing of it is in a hurry."""
        if self._channel is not None and (self._channel.hurried or not hurried_only):
            self._channel.flush()

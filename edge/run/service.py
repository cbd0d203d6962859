"""Tells systemd that the line is ready, alive or stopping. Without systemd it does nothing.

Written by hand: the protocol is one datagram, and the packages for it are unmaintained or bind to libsystemd.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable


class Service:
    """The service manager that started this process, if one did: it says so in the environment."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        limit = os.environ.get("WATCHDOG_USEC",
                               "") if os.environ.get("WATCHDOG_PID") in (None, str(os.getpid())) else ""
        self._every = int(limit) / 4e6 if limit.isdigit() else None  # s, a quarter of the watchdog's limit
        self._now, self._next = now, 0.0

    def tell(self, text: str) -> None:
        """Send a state, such as ``READY=1``. A manager that does not listen changes nothing."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sending:
            try:
                sending.sendto(text.encode(), self._address)
            except OSError:
                return

    def alive(self) -> None:
        """Feed the watchdog, as often as it needs that. Call it in every turn of the loop that must not hang."""
        if self._every is not None and (now := self._now()) >= self._next:
            self._next = now + self._every
            self.tell("WATCHDOG=1")

"""Messages to the operator, from any thread, without ever waiting for the terminal."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

WAITING = 200  # messages; more are dropped while the terminal takes none
REPEAT_AFTER = 60.0  # s until a message of the same kind is shown again, with how often it came meanwhile
CLOSE_WAIT = 1.0  # s for the terminal to take the last messages


class Operator:
    """Shows messages in a thread of its own: a terminal that hangs or is gone must not hold up the line."""

    def __init__(self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        """say: writes a message to the terminal; it may block or fail."""
        self._say, self._now = say, now
        self._queue: queue.Queue[str | None] = queue.Queue(WAITING)
        self._kinds: dict[str, tuple[float, int]] = {}  # when it was last shown, and how often it came since
        self._thread = threading.Thread(target=self._loop, name="operator", daemon=True)
        self._thread.start()

    def tell(self, text: str) -> None:
        """Show a message. Of messages that differ in numbers alone, one a minute is shown. Returns at once."""
        kind = "".join(c for c in text if not c.isdigit())
        shown, since = self._kinds.get(kind, (float("-inf"), 0))
        now = self._now()
        if now - shown < REPEAT_AFTER:
            self._kinds[kind] = (shown, since + 1)
            return
        if len(self._kinds) > WAITING:
            self._kinds.clear()
        self._kinds[kind] = (now, 0)
        self._put(f"{text} ({since} more like this since)" if since else text)

    def _put(self, text: str | None) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(text)

    def _loop(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                self._say(text)
            except BaseException:  # rich raises SystemExit where the terminal is gone
                continue

    def close(self) -> None:
        """Show what waits, for at most a second."""
        self._put(None)
        self._thread.join(CLOSE_WAIT)

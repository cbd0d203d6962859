"""Frames between a camera's thread and who inspects them."""

from __future__ import annotations

import queue

from edge.part.frame import CameraFrame

WAITING = 64  # frames that nobody has taken yet


class FrameQueue:
    """When it is full, the oldest frame is dropped and counted, and its part is late. Any thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[CameraFrame | Exception] = queue.Queue(WAITING)
        self.dropped = 0

    def put(self, frame: CameraFrame | Exception) -> None:
        """Returns at once. An exception is raised by `get`."""
        while True:
            try:
                self._queue.put_nowait(frame)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                    self.dropped += 1
                except queue.Empty:
                    continue

    def get(self, timeout: float) -> CameraFrame | None:
        """The next frame, or None after ``timeout`` s. Raises what was put in place of one."""
        try:
            frame = self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(frame, Exception):
            raise frame
        return frame

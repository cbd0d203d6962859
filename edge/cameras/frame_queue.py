"""Frames between the thread that gets them from a camera and the thread that inspects them."""

from __future__ import annotations

import queue

from edge.part.frame import CameraFrame

WAITING = 64  # frames that may wait at most


class FrameQueue:
    """A full queue drops its oldest frame and counts it, and that frame's part is late. For any thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[CameraFrame | Exception] = queue.Queue(WAITING)
        self.dropped = 0

    def put(self, frame: CameraFrame | Exception) -> None:
        """Add a frame, or an exception for `get` to raise. Never blocks."""
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
        """The next frame, or None after ``timeout`` s. Raises an exception that was put in place of a frame."""
        try:
            frame = self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(frame, Exception):
            raise frame
        return frame

"""Several cameras that look at the same parts, as one: frames of all, in the order in which they come."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from edge.cameras import Camera, CameraFrame

WAITING = 64  # frames that nobody has taken yet; then the oldest is dropped, and its part is late
POLL = 0.1  # s


class CameraGroup:
    """A thread for each camera waits for its frames."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        """``camera`` of a frame is the place in ``cameras``."""
        self._cameras = list(cameras)
        self._frames: queue.Queue[CameraFrame | Exception] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._grab, args=(number, camera), name=f"camera-{number + 1}", daemon=True)
                         for number, camera in enumerate(self._cameras)]
        self.dropped = 0

    def open(self) -> None:
        """Open all. Raises CameraError, with none left open."""
        opened: list[Camera] = []
        try:
            for camera in self._cameras:
                camera.open()
                opened.append(camera)
        except BaseException:
            for camera in opened:
                camera.close()
            raise
        for thread in self._threads:
            thread.start()

    def _grab(self, number: int, camera: Camera) -> None:
        while not self._closing.is_set():
            try:
                frame = camera.next(POLL)
            except Exception as error:  # told to who asks next
                self._put(error)
                self._closing.wait(POLL)
            else:
                if frame is not None:
                    self._put(replace(frame, camera=number) if number else frame)

    def _put(self, frame: CameraFrame | Exception) -> None:
        while True:
            try:
                self._frames.put_nowait(frame)
                return
            except queue.Full:
                try:
                    self._frames.get_nowait()
                    self.dropped += 1
                except queue.Empty:
                    continue

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        """Take a frame with each."""
        for camera in self._cameras:
            camera.expose(trigger, part, encoder, at)

    def next(self, timeout: float) -> CameraFrame | None:
        """The next frame of any, or None after ``timeout`` s. Raises what a camera raised."""
        try:
            frame = self._frames.get(timeout=timeout) if timeout else self._frames.get_nowait()
        except queue.Empty:
            return None
        if isinstance(frame, Exception):
            raise frame
        return frame

    def counters(self) -> dict[str, int]:
        """The sums of all, and the frames that were dropped since nobody took them."""
        total = Counter(dropped=self.dropped)
        for camera in self._cameras:
            total.update(camera.counters())
        return dict(total)

    def close(self) -> None:
        """Free all."""
        self._closing.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(10 * POLL)
        for camera in self._cameras:
            camera.close()

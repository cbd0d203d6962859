"""Several cameras that look at the same parts, as one: frames of all, in the order in which they come."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from edge.cameras.camera import Camera
from edge.cameras.frame_queue import FrameQueue
from edge.part.frame import CameraFrame

POLL = 0.1  # s


class CameraGroup:
    """A thread for each camera waits for its frames."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        """``camera`` of a frame is the place in ``cameras``."""
        self._cameras = list(cameras)
        self._frames = FrameQueue()
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._grab, args=(number, camera), name=f"camera-{number + 1}", daemon=True)
                         for number, camera in enumerate(self._cameras)]

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
                self._frames.put(error)
                self._closing.wait(POLL)
            else:
                if frame is not None:
                    self._frames.put(replace(frame, camera=number) if number else frame)

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        """Take a frame with each."""
        for camera in self._cameras:
            camera.expose(trigger, part, encoder, at)

    def next(self, timeout: float) -> CameraFrame | None:
        """The next frame of any, or None after ``timeout`` s. Raises what a camera raised."""
        return self._frames.get(timeout)

    def settle(self, camera: int) -> None:
        """Let one of them begin anew."""
        self._cameras[camera].settle(0)

    def counters(self) -> dict[str, int]:
        """The sums of all, and the frames that were dropped since nobody took them."""
        total = Counter(dropped=self._frames.dropped)
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

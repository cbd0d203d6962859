"""Several cameras that look at the same parts, used as one camera."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from edge.cameras.camera import Camera
from edge.cameras.frame_queue import FrameQueue
from edge.part.frame import CameraFrame

NEXT_TIMEOUT = 0.1  # s that a camera's thread waits for a frame before it checks whether the group is closing
ERROR_PAUSE = 0.1  # s after an error, before the camera is asked again
CLOSE_TIMEOUT = 1.0  # s that each thread may take to end


class CameraGroup:
    """Delivers the frames of all cameras as they arrive. A thread per camera waits for them."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        """``CameraFrame.camera`` is the index in ``cameras``."""
        self._cameras = list(cameras)
        self._frames = FrameQueue()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._grab, args=(number, camera), name=f"camera-{number + 1}", daemon=True)
            for number, camera in enumerate(self._cameras)]

    def open(self) -> None:
        """Open all cameras. If one raises CameraError, those already open are closed again."""
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
                frame = camera.next(NEXT_TIMEOUT)
            except Exception as error:  # `next` raises it in the caller's thread
                self._frames.put(error)
                self._closing.wait(ERROR_PAUSE)
            else:
                if frame is not None:
                    self._frames.put(replace(frame, camera=number) if number else frame)

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        """Take a frame with each camera."""
        for camera in self._cameras:
            camera.expose(trigger, part, encoder, at)

    def next(self, timeout: float) -> CameraFrame | None:
        """The next frame of any camera, or None after ``timeout`` s. Raises what a camera raised."""
        return self._frames.get(timeout)

    def settle(self, camera: int) -> None:
        """Resynchronise one of the cameras; see `Camera.settle`."""
        self._cameras[camera].settle(0)

    def counters(self) -> dict[str, int]:
        """The sums over all cameras, and the frames that were dropped here."""
        total = Counter(dropped=self._frames.dropped)
        for camera in self._cameras:
            total.update(camera.counters())
        return dict(total)

    def close(self) -> None:
        """Free all cameras."""
        self._closing.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(CLOSE_TIMEOUT)
        for camera in self._cameras:
            camera.close()

"""Camera `video`: anything that OpenCV reads. A file plays a frame per trigger; devices, streams, pipelines run free.

OpenCV has no triggers and no frame ids, and device times only for V4L2. So the frames of a free camera are counted
here.
"""

from __future__ import annotations

import difflib
import math
import os
import queue
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.base.errors import CameraError
from edge.base.settings import without_password
from edge.cameras.driver import Grabbed
from edge.cameras.video.devices import find_devices
from edge.cameras.video.options import VideoOptions
from edge.images.frames import Frame
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause

TIMEOUT_S = 2  # for a source to open, or for a frame to come
BACKENDS = {"v4l2": "V4L2", "ffmpeg": "FFMPEG", "gstreamer": "GSTREAMER"}
PREFIX = "CAP_PROP_"
ENVIRONMENT = {"OPENCV_FFMPEG_LOGLEVEL": "-8",  # quiet, because the errors here say it already
               "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": str(TIMEOUT_S)}


def _backend(section: VideoOptions) -> int:
    """OpenCV's number of the backend. Raises CameraError if this OpenCV was built without it."""
    wanted = section.backend
    if wanted == "auto":
        wanted = "gstreamer" if " ! " in section.source else "v4l2" if section.source.startswith("/dev/") else "ffmpeg"
    number = getattr(cv2, f"CAP_{BACKENDS[wanted]}")
    if cv2.videoio_registry.hasBackend(number):
        return int(number)
    if section.backend == "auto" and wanted == "ffmpeg":  # other backends can read files and streams too
        return int(cv2.CAP_ANY)
    raise CameraError(f"this OpenCV cannot read {without_password(section.source)}",
                      got=f"OpenCV {cv2.__version__} built without {BACKENDS[wanted]}",
                      expected=f"one with {BACKENDS[wanted]}, as the system's OpenCV",
                      next="Run: pip uninstall opencv-python-headless; sudo apt-get install python3-opencv; in a "
                           "virtual environment that was made with --system-site-packages. See docs/cameras.md.")


def open_capture(section: VideoOptions, source: str) -> cv2.VideoCapture:
    """Open the source and set its properties. Waits `TIMEOUT_S` at most, if the backend can. Raises CameraError."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)
    backend = _backend(section)
    capture = cv2.VideoCapture()
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * TIMEOUT_S, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * TIMEOUT_S]
    opened = backend != cv2.CAP_V4L2 and capture.open(source, backend, limits)
    if not opened and backend in (cv2.CAP_V4L2, cv2.CAP_GSTREAMER):  # V4L2 and older GStreamer reject these limits
        opened = capture.open(source, backend)
    if not opened:
        raise CameraError(f"OpenCV cannot open {without_password(source)}", expected="a video that it can decode",
                          next="Check that it exists, that you may read it, and that no other program is using it.")
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # some ignore this; the constant reading here empties their buffer anyway
    try:
        _set_properties(capture, section, source)
    except CameraError:
        capture.release()
        raise
    return capture


def _set_properties(capture: cv2.VideoCapture, section: VideoOptions, source: str) -> None:
    for name, value in section.properties.items():
        number = getattr(cv2, PREFIX + name, None)
        if number is None:
            known = [other.removeprefix(PREFIX) for other in dir(cv2) if other.startswith(PREFIX)]
            close = difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, 1)
            expected = f"{close[0]!r}" if close else "an OpenCV name without CAP_PROP_, such as FRAME_WIDTH"
            raise CameraError(f"unknown property {name!r} under [camera]", expected=expected)
        capture.set(number, value)
        given = capture.get(number)
        if not math.isclose(given, value, rel_tol=1e-3, abs_tol=1e-3):
            raise CameraError(f"{without_password(source)} does not accept {name} = {value:g}", got=f"{given:g}",
                              expected="a value that it supports",
                              next="Fix `properties` under [camera] in the line file.")


def as_frame(image: Any, grey: bool, source: str) -> Frame:
    """Convert an image from OpenCV to a frame. Raises CameraError.

    image: uint8 ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` (BGR). grey: convert colour to one channel. source: its
    name.
    """
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype != np.uint8 or channels not in (1, 3):
        raise CameraError(f"{source} delivers frames that cannot be used", got=f"{channels} channels of {image.dtype}",
                          expected="1 or 3 of uint8",
                          next="Fix `properties` under [camera], such as FOURCC and CONVERT_RGB.")
    if channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if grey else cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None], dtype=np.uint8)


class VideoFile:
    """A camera that the line triggers, and whose images are the frames of a video file."""

    def __init__(self, section: VideoOptions, path: Path) -> None:
        self._section, self._path = section, path
        self._triggers: queue.SimpleQueue[tuple[int, int, int | None, float]] = queue.SimpleQueue()
        self._capture: cv2.VideoCapture | None = None
        self._first: Any = None  # the first image, until it is played
        self._frames = 0  # delivered in all
        self._played = 0  # since the start of the file

    def open(self) -> None:
        if not self._path.is_file():
            raise CameraError(f"no video at {self._path}", got="a folder" if self._path.is_dir() else "nothing",
                              expected="a file, /dev/video0, rtsp://..., http://... or a GStreamer pipeline",
                              next="Fix `source` under [camera] in the line file.")
        try:
            self._rewind()
            as_frame(self._first, self._section.grey, str(self._path))
        except CameraError:
            self.close()
            raise

    def _rewind(self) -> None:
        """Go to the first frame. Raises CameraError if there is none."""
        self.close()
        self._capture = open_capture(self._section, str(self._path))
        ok, self._first = self._capture.read()
        self._played = 0
        if not ok:
            raise CameraError(f"{self._path} has no frame", got="a file without video that OpenCV can decode",
                              expected="a video")

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        self._triggers.put((trigger, part, encoder, at))

    def next(self, timeout: float) -> CameraFrame | None:
        try:
            trigger, part, encoder, at = self._triggers.get(timeout=timeout)
        except queue.Empty:
            return None
        number = self._frames
        self._frames += 1
        try:
            image = self._read()
            source = f"{self._path.name}:{self._played - 1}"
            if image is not None:
                frame = as_frame(image, self._section.grey, source)
                return CameraFrame(trigger, part, number, at, frame, source, encoder=encoder)
        except Exception as error:  # a bad file must not stop the line
            return CameraFrame(trigger, part, number, at, None, self._path.name, encoder=encoder, cause=Cause.CAMERA,
                               text=str(error))
        return CameraFrame(trigger, part, number, at, None, encoder=encoder, cause=Cause.NO_FRAME,
                           text=f"the video {self._path} ran dry after {self._played} frames; take a longer one, or "
                                "set `loop = true`")

    def _read(self) -> Any:
        """The next image as OpenCV reads it, or None at the end."""
        if self._capture is None:
            self._rewind()
        image, self._first = self._first, None
        if image is None and self._capture is not None:
            image = self._capture.read()[1]
        if image is None and self._section.loop:
            self._rewind()
            return self._read()
        self._played += image is not None
        return image

    def settle(self, camera: int) -> None:
        """Nothing to do: each frame is taken for one trigger."""

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = None


class VideoDriver:
    """A device, a stream or a pipeline. It cannot be triggered, and the driver counts its frames."""

    ids = (0, (1 << 62) - 1)

    def __init__(self, section: VideoOptions) -> None:
        self._section = section
        self.name = without_password(section.source)
        self._capture: cv2.VideoCapture | None = None
        self._frames = 0

    def connect(self) -> None:
        source = self._section.source
        if source.startswith("/dev/") and not Path(source).exists():
            found = ", ".join(camera.key for camera in find_devices())
            raise CameraError(f"no camera at {source}", got=found or "no video device at all",
                              expected="a device that exists",
                              next="Fix `source` under [camera] in the line file, or connect the camera.")
        self._capture = open_capture(self._section, source)
        self._frames = 0
        try:
            self.grab(TIMEOUT_S)
        except CameraError:
            self.disconnect()
            raise

    def trigger(self) -> None:
        raise CameraError(f"{self.name} cannot be triggered", expected="a camera that runs free")

    def grab(self, timeout: float) -> Grabbed | None:
        """The next frame, uint8 ``[H, W, 1]`` or ``[H, W, 3]`` (RGB). Waits as long as OpenCV does, not ``timeout``."""
        if self._capture is None:
            raise CameraError(f"{self.name} is not open")
        ok, image = self._capture.read()
        if not ok:  # after a disconnect, reading fails at once and forever
            raise CameraError(f"{self.name} delivers no frame", next="Check its cable, network and power.")
        # Only V4L2 says when a frame was taken. The times of streams are often just derived from the frame rate.
        moment = self._capture.get(cv2.CAP_PROP_POS_MSEC) if self._capture.getBackendName() == "V4L2" else 0.0
        number = self._frames
        self._frames += 1
        return Grabbed(as_frame(image, self._section.grey, self.name), number, moment / 1000 if moment > 0 else None)

    def statistics(self) -> dict[str, int]:
        return {}

    def disconnect(self) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = None

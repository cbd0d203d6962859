"""Writes the runtime's part of a recorded session.

What the disk is too slow for is skipped, and never slows the line.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from edge.base.errors import InputError
from edge.images.frames import Frame
from edge.inspection.inspector import Inspector
from edge.inspection.views import View
from edge.part.events import Ended, Expose
from edge.part.frame import CameraFrame
from edge.record.recorder import NullRecorder
from edge.record.session import note

WAITING = 256 << 20  # bytes of frames that wait for the disk; more are skipped
CLOSE_WAIT = 5.0  # s for the disk to take what is left
KNOWN = 1024  # newest frames that a verdict may refer to
RECORDED_NAMES = {"connection": "session", "run_id": "session"}  # fields that have another name in recorded sessions


def write_frame(path: Path, frame: Frame) -> None:
    """Write a frame, uint8 ``[H, W, C]``, RGB or grey, as an uncompressed TIFF: lossless, quick, and easy to view."""
    ordered = frame if frame.shape[2] == 1 else cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".tif", ordered, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    if not done:
        raise OSError("the frame cannot be encoded")
    path.write_bytes(data.tobytes())


class SessionWriter(NullRecorder):
    """The runtime's part of a session. Nothing here waits for the disk, except `live` and `close`."""

    def __init__(self, folder: Path, trouble: Callable[[str], None], *, wall_clock: Callable[[], float] = time.time,
                 write_frame: Callable[[Path, Frame], None] = write_frame, waiting: int = WAITING) -> None:
        """folder: of `begin_session`. trouble: is told once why the session is not complete. wall_clock: s since 1970.

        write_frame: writes a frame to a file. waiting: bytes of frames that may wait for the disk. Raises InputError.
        """
        self._folder, self._trouble, self._write_frame, self._most = folder, trouble, write_frame, waiting
        self._queue: queue.SimpleQueue[tuple[dict[str, Any], Frame | None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._bytes = 0  # of frames that wait
        # of frames, by camera, its connection and frame id
        self._numbers: OrderedDict[tuple[int, int, int], int] = OrderedDict()
        self.left_out = 0
        try:  # a runtime that died may have written some already
            self._frames = max((int(path.stem) for path in (folder / "frames").glob("*.tif")), default=0)
            self._bundles = len(list((folder / "bundles").glob("*")))
            self._file = (folder / "runtime.jsonl").open("a", encoding="utf-8")
            if self._file.tell():
                self._file.write("\n")  # its last line may be cut off
        except OSError as error:
            raise InputError(f"cannot write the session {folder}", got=error.strerror,
                             next="Make room on the disk.") from error
        self._failed = False
        self._thread = threading.Thread(target=self._loop, name="session", daemon=True)
        self._thread.start()
        self._put({"what": "start", "pid": os.getpid(), "at": time.monotonic(), "wall": wall_clock()})

    def _put(self, entry: dict[str, Any], image: Frame | None = None) -> None:
        self._queue.put((entry, image))

    def live(self, run: int, inspector: Inspector, threshold: float, threads: int, mode: str) -> None:
        """The line inspects with this bundle from now on; it is copied into the session.

        run: its row in the journal.
        """
        self._bundles += 1
        copy = f"bundles/{self._bundles}"
        try:
            shutil.copytree(inspector.bundle.folder, self._folder / copy)
        except OSError as error:
            self._fail(f"the bundle could not be copied into the session: {error}")
        self._put({"what": "live", "run": run, "bundle": copy, "precision": inspector.precision,
                   "backend": inspector.backend, "threshold": threshold, "threads": threads, "mode": mode})

    def exposed(self, expose: Expose) -> None:
        """A part was triggered."""
        self._put({"what": "expose", **vars(expose)})

    def frame(self, frame: CameraFrame) -> None:
        """A camera delivered a frame, whichever part it shows."""
        entry = {RECORDED_NAMES.get(name, name): value for name, value in vars(frame).items() if name != "image"}
        entry |= {"what": "frame", "host_time": None if frame.host_time != frame.host_time else frame.host_time,
                  "came": time.monotonic()}
        image = frame.image
        if image is not None:
            with self._lock:
                fits = self._bytes + image.nbytes <= self._most
                self._bytes += image.nbytes * fits
                self._frames += fits
                self.left_out += not fits
                number = self._frames
                if fits:
                    self._numbers[frame.camera, frame.connection, frame.frame_id] = number
                    if len(self._numbers) > KNOWN:
                        self._numbers.popitem(last=False)
            if not fits:
                self._fail("the disk is too slow for the session: frames are missing from it")
                image = None
            else:
                entry["file"] = f"frames/{number:08d}.tif"
        self._put(entry, image)

    def judged(self, view: View, run: int) -> None:
        """One camera's view of a part was judged."""
        frame, found = view.frame, view.inspection
        number = self._numbers.get((frame.camera, frame.connection, frame.frame_id)) if found is not None else None
        self._put({"what": "judged", "trigger": frame.trigger, "part": frame.part, "camera": frame.camera,
                   "source": frame.source, "file": None if number is None else f"frames/{number:08d}.tif", "run": run,
                   "verdict": view.verdict, "cause": view.cause, "score": None if found is None else found.score})

    def ended(self, ended: Ended) -> None:
        """A part has its outcome."""
        self._put({"what": "ended", **{RECORDED_NAMES.get(name, name): value for name, value in vars(ended).items()}})

    def _fail(self, text: str) -> None:
        if not self._failed:
            self._failed = True
            self._trouble(text)

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            entry, image = item
            try:
                if image is not None:
                    self._write_frame(self._folder / entry["file"], image)
                self._file.write(json.dumps(entry, default=str) + "\n")
                if self._queue.empty():
                    self._file.flush()
            except Exception as error:  # mostly a full disk; whatever it is, the line goes on
                self.left_out += 1
                self._fail(f"the session cannot be written any more: {error}")
            finally:
                if image is not None:
                    with self._lock:
                        self._bytes -= image.nbytes

    def close(self) -> None:
        """Write what is left, for some seconds; the rest is skipped."""
        self._queue.put(None)
        self._thread.join(CLOSE_WAIT)
        if self._thread.is_alive():
            self._fail("the disk is too slow for the session: its end is missing")
            self.left_out += self._queue.qsize()
        else:
            with contextlib.suppress(OSError):
                self._file.close()
        with contextlib.suppress(OSError, ValueError):
            note(self._folder, frames=self._frames, left_out=self.left_out, failed=self._failed)

"""Writes the runtime's part of a session. What the disk is too slow for is left out, and never slows the line."""

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
from edge.record.session import note

WAITING = 256 << 20  # bytes of frames that wait for the disk; beyond that frames are left out
CLOSE = 5.0  # s
KNOWN = 1024  # newest frames that a verdict may be of


class SessionWriter:
    """The runtime's part of a session. Any thread may call it; nothing here waits, but `live` and `close`."""

    def __init__(self, folder: Path, trouble: Callable[[str], None]) -> None:
        """folder: of `begin_session`. ``trouble`` is told once why the session is not complete. Raises InputError."""
        self._folder, self._trouble = folder, trouble
        self._queue: queue.SimpleQueue[tuple[dict[str, Any], Frame | None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._bytes = 0  # of frames that wait
        self._numbers: OrderedDict[tuple[int, int, int], int] = OrderedDict()  # of frames, by camera, session and frame id
        self.left_out = 0
        try:  # there may be those of a runtime before this one
            self._frames = max((int(path.stem) for path in (folder / "frames").glob("*.tif")), default=0)
            self._bundles = len(list((folder / "bundles").glob("*")))
            self._file = (folder / "runtime.jsonl").open("a", encoding="utf-8")
            if self._file.tell():
                self._file.write("\n")  # its last line may be cut off
        except OSError as error:
            raise InputError(f"cannot write the session {folder}", got=error.strerror, next="Make room on the disk.") from error
        self._failed = False
        self._thread = threading.Thread(target=self._loop, name="session", daemon=True)
        self._thread.start()
        self._put({"what": "start", "pid": os.getpid(), "at": time.monotonic(), "wall": time.time()})

    def _put(self, entry: dict[str, Any], image: Frame | None = None) -> None:
        self._queue.put((entry, image))

    def live(self, run: int, inspector: Inspector, threshold: float, threads: int, mode: str) -> None:
        """This is what is inspected with from now on; the bundle is copied. run: of the journal."""
        self._bundles += 1
        copy = f"bundles/{self._bundles}"
        try:
            shutil.copytree(inspector.bundle.folder, self._folder / copy)
        except OSError as error:
            self._fail(f"the bundle could not be copied into the session: {error}")
        self._put({"what": "live", "run": run, "bundle": copy, "precision": inspector.precision, "backend": inspector.backend,
                   "threshold": threshold, "threads": threads, "mode": mode})

    def exposed(self, expose: Expose) -> None:
        """A part was triggered."""
        self._put({"what": "expose", **vars(expose)})

    def frame(self, frame: CameraFrame) -> None:
        """A frame has come, whichever part it is of."""
        entry = {name: value for name, value in vars(frame).items() if name != "image"}
        entry |= {"what": "frame", "host_time": None if frame.host_time != frame.host_time else frame.host_time, "came": time.monotonic()}
        image = frame.image
        if image is not None:
            with self._lock:
                fits = self._bytes + image.nbytes <= WAITING
                self._bytes += image.nbytes * fits
                self._frames += fits
                self.left_out += not fits
                number = self._frames
                if fits:
                    self._numbers[frame.camera, frame.session, frame.frame_id] = number
                    if len(self._numbers) > KNOWN:
                        self._numbers.popitem(last=False)
            if not fits:
                self._fail("the disk is too slow for the session: frames are left out of it")
                image = None
            else:
                entry["file"] = f"frames/{number:08d}.tif"
        self._put(entry, image)

    def judged(self, view: View, run: int) -> None:
        """One camera's view of a part was judged."""
        frame, found = view.frame, view.inspection
        number = self._numbers.get((frame.camera, frame.session, frame.frame_id)) if found is not None else None
        self._put({"what": "judged", "trigger": frame.trigger, "part": frame.part, "camera": frame.camera, "source": frame.source,
                   "file": None if number is None else f"frames/{number:08d}.tif", "run": run, "verdict": view.verdict,
                   "cause": view.cause, "score": None if found is None else found.score})

    def ended(self, ended: Ended) -> None:
        """A part has its outcome."""
        outcome = {**vars(ended), "session": ended.run_id}  # the name that recorded sessions have for it
        del outcome["run_id"]
        self._put({"what": "ended", **outcome})

    def _fail(self, text: str) -> None:
        if not self._failed:
            self._failed = True
            self._trouble(text)

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            entry, image = item
            try:
                if image is not None:
                    self._write(self._folder / entry["file"], image)
                self._file.write(json.dumps(entry, default=str) + "\n")
                if self._queue.empty():
                    self._file.flush()
            except Exception as error:  # the disk is full, mostly; whatever it is, the line goes on
                self.left_out += 1
                self._fail(f"the session cannot be written any more: {error}")
            finally:
                if image is not None:
                    with self._lock:
                        self._bytes -= image.nbytes

    @staticmethod
    def _write(path: Path, image: Frame) -> None:
        ordered = image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(".tif", ordered, [cv2.IMWRITE_TIFF_COMPRESSION, 1])  # none: lossless, quick, and every viewer knows it
        if not done:
            raise OSError("the frame cannot be encoded")
        path.write_bytes(data.tobytes())

    def close(self) -> None:
        """Write what is left, for some seconds; what the disk does not take then is left out."""
        self._queue.put(None)
        self._thread.join(CLOSE)
        if self._thread.is_alive():
            self._fail("the disk is too slow for the session: its end is left out")
            self.left_out += self._queue.qsize()
        else:
            with contextlib.suppress(OSError):
                self._file.close()
        with contextlib.suppress(OSError, ValueError):
            note(self._folder, frames=self._frames, left_out=self.left_out, failed=self._failed)

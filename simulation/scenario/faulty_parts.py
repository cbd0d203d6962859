"""A camera and an inspector that fail where a scenario says so. The runtime of a simulated line is handed them."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.base.errors import CameraError, EngineError, EngineLostError
from edge.bundle.bundle import Bundle
from edge.cameras.folder import FolderCamera, FolderSection
from edge.cameras.section import CameraSection
from edge.engines.engine import Mode, Precision
from edge.images.frames import Frame
from edge.inspection.inspector import Inspection, Inspector, Job
from edge.part.frame import CameraFrame
from simulation.scenario.fault_board import FaultBoard

FRAME_FAULTS = ("frame-dropped", "frame-duplicated", "frame-late", "frames-swapped", "frame-truncated", "frame-shifted")
ENGINE_FAULTS = ("engine-error", "engine-lost", "slow-inference")
GOT = "a fault of the scenario"


class FaultyParts:
    """Makes the camera and the inspectors of one runtime. They share which part each image shows."""

    def __init__(self, board: FaultBoard) -> None:
        self._board = board
        self._seen: dict[int, int] = {}  # parts by the identity of their newest image

    def make_camera(self, sections: Sequence[CameraSection], folder: Path) -> FaultyCamera:
        """In place of `edge.cameras.kinds.make_camera`: a simulated line has one folder camera."""
        section = sections[0]
        assert isinstance(section, FolderSection)
        return FaultyCamera(self._board, self._seen, folder / section.path, section.loop, section.frames_name_triggers)

    def make_inspector(self, bundle: Bundle, *, precision: Precision, backend: str | None, threads: int,
                       mode: Mode) -> FaultyInspector:
        """In place of `Inspector`."""
        return FaultyInspector(self._board, self._seen, bundle, precision, backend, threads, mode)


class FaultyCamera(FolderCamera):
    """The folder camera, with frames that are dropped, doubled, late, swapped or truncated."""

    def __init__(self, board: FaultBoard, seen: dict[int, int], folder: Path, loop: bool, tells_trigger: bool) -> None:
        super().__init__(folder, loop, False, tells_trigger)
        self._board, self._seen = board, seen
        self._waiting: queue.SimpleQueue[tuple[int, int, int | None, float]] = queue.SimpleQueue()
        self._ready: deque[CameraFrame] = deque()
        self._late: list[tuple[float, CameraFrame]] = []
        self._swapped: CameraFrame | None = None

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        self._waiting.put((trigger, part, encoder, at))

    def next(self, timeout: float) -> CameraFrame | None:
        self._board.look()
        if self._board.on("camera-stall"):
            time.sleep(timeout)
            return None
        if self._board.on("camera-error"):
            raise CameraError("the camera is gone", got=GOT)
        now = time.monotonic()
        self._ready.extend(frame for ready, frame in self._late if ready <= now)
        self._late = [(ready, frame) for ready, frame in self._late if ready > now]
        if not self._ready:
            wait = min([timeout, *(ready - now for ready, _ in self._late)])
            try:
                self._take(*self._waiting.get(timeout=max(0.0, wait)))
            except queue.Empty:
                return None
        if not self._ready:
            return None
        return self._ready.popleft()

    def _take(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        self._frames = part - 1
        super().expose(trigger, part, encoder, at)
        frame = super().next(1.0)
        assert frame is not None
        self._seen[id(frame.image)] = part
        fault: dict[str, Any] = self._board.of_part(part, *FRAME_FAULTS) or {}
        kind = fault.get("kind")
        if kind == "frame-late":
            self._late.append((time.monotonic() + fault["by_ms"] / 1000, frame))
            return
        if kind == "frame-dropped":
            return
        if kind == "frames-swapped" and self._swapped is None:
            self._swapped = frame  # kept until the next one has come
            return
        if kind == "frame-truncated" and frame.image is not None:
            frame = replace(frame, image=frame.image[: frame.image.shape[0] // 2], complete=False)
        if kind == "frame-shifted":
            frame = replace(frame, frame_id=frame.frame_id + fault["ids"],
                            encoder=(frame.encoder or 0) + fault["counts"])
        self._ready.append(frame)
        if kind == "frame-duplicated":
            self._ready.append(frame)
        if self._swapped is not None:
            self._ready.append(self._swapped)
            self._swapped = None


class FaultyInspector(Inspector):
    """The inspector, with inferences that fail or are slow, and a GPU that is lost."""

    def __init__(self, board: FaultBoard, seen: dict[int, int], bundle: Bundle, precision: Precision,
                 backend: str | None, threads: int, mode: Mode) -> None:
        super().__init__(bundle, precision=precision, backend=backend, threads=threads, mode=mode)
        self._board, self._seen = board, seen
        self._parts: dict[Job, int] = {}

    def start(self, frame: Frame) -> Job:
        job = super().start(frame)
        self._parts[job] = self._seen[id(frame)]
        return job

    def finish(self, job: Job, threshold: float | None) -> Inspection:
        fault: dict[str, Any] = self._board.of_part(self._parts.pop(job), *ENGINE_FAULTS) or {}
        kind = fault.get("kind")
        if kind == "engine-error":
            super().finish(job, threshold)  # frees the slot
            raise EngineError("the inference failed", got=GOT)
        if kind == "engine-lost":
            raise EngineLostError("the GPU is lost", got=GOT)
        if kind == "slow-inference":
            time.sleep(fault["by_ms"] / 1000)
        return super().finish(job, threshold)

"""`lineside run` with the faults of a scenario in its processes: python -m simulation.scenario.faulty_line FOLDER run LINE.toml ...

The line is the real one. In the runtime the camera, the inference and the disk fail where the scenario says so; in all of its
processes the wall clock may step. The camera sees the part that the PLC triggered: part 1 is the folder's first image, whatever
process was started again meanwhile.
"""

from __future__ import annotations

import os
import queue
import resource
import runpy
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulation.scenario.fault_board import FaultBoard

CONTROL = "edge.line_control.process"
LOOK = 0.02  # s


def step_clock(board: FaultBoard) -> None:
    """Let ``time.time`` of this process step."""
    real = time.time
    steps = {number: fault["by_s"] for number, fault in enumerate(board.faults) if fault["kind"] == "clock-step"}
    if steps:
        time.time = lambda: real() + sum(by for number, by in steps.items() if (board.folder / f"{number}.on").exists())


def wrap_control(folder: str) -> None:
    """Start line control through this module as well."""
    class Popen(subprocess.Popen[Any]):
        def __init__(self, command: list[str], **options: Any) -> None:
            if command[1:3] == ["-m", CONTROL]:
                command = [command[0], "-m", "simulation.scenario.faulty_line", folder, *command[2:]]
            super().__init__(command, **options)

    subprocess.Popen = Popen  # type: ignore[misc, assignment]


def fill_disk(board: FaultBoard) -> None:
    """A thread that takes the disk away from this process while the fault is on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def loop() -> None:
        full = False
        while True:
            time.sleep(LOOK)
            board.look()
            if (board.on("disk-full") is not None) != full:
                full = not full
                resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else soft, hard))

    if any(fault["kind"] == "disk-full" for fault in board.faults):
        threading.Thread(target=loop, name="disk", daemon=True).start()


def wrap_runtime(board: FaultBoard) -> None:
    """Put faulty ones in the place of the folder camera and of the inference."""
    import edge.cameras.folder
    from edge.base.errors import CameraError, EngineError, EngineLostError
    from edge.images.frames import Frame
    from edge.inspection.inspector import Inspection, Inspector, Job
    from edge.part.frame import CameraFrame

    seen: dict[int, int] = {}  # parts by the identity of their newest image
    parts: dict[Job, int] = {}

    class FaultyCamera(edge.cameras.folder.FolderCamera):
        """The folder camera, with frames that are dropped, doubled, late, swapped or truncated."""

        def __init__(self, folder: Path, loop: bool, preload: bool = False, tells_trigger: bool = True) -> None:
            super().__init__(folder, loop, preload, tells_trigger)
            self._waiting: queue.SimpleQueue[tuple[int, int, int | None, float]] = queue.SimpleQueue()
            self._ready: deque[CameraFrame] = deque()
            self._late: list[tuple[float, CameraFrame]] = []
            self._swapped: CameraFrame | None = None

        def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
            self._waiting.put((trigger, part, encoder, at))

        def next(self, timeout: float) -> CameraFrame | None:
            board.look()
            if board.on("camera-stall"):
                time.sleep(timeout)
                return None
            if board.on("camera-error"):
                raise CameraError("the camera is gone", got="a fault of the scenario")
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
            seen[id(frame.image)] = part
            fault = board.of_part(part, "frame-dropped", "frame-duplicated", "frame-late", "frames-swapped", "frame-truncated",
                                  "frame-shifted") or {}
            kind = fault.get("kind")
            if kind == "frame-late":
                self._late.append((time.monotonic() + fault["by_ms"] / 1000, frame))
                return
            if kind == "frame-dropped":
                return
            if kind == "frames-swapped" and self._swapped is None:
                self._swapped = frame  # until the next one has come
                return
            if kind == "frame-truncated" and frame.image is not None:
                frame = replace(frame, image=frame.image[: frame.image.shape[0] // 2], complete=False)
            if kind == "frame-shifted":
                frame = replace(frame, frame_id=frame.frame_id + fault["ids"], encoder=(frame.encoder or 0) + fault["counts"])
            self._ready.append(frame)
            if kind == "frame-duplicated":
                self._ready.append(frame)
            if self._swapped is not None:
                self._ready.append(self._swapped)
                self._swapped = None

    start, finish = Inspector.start, Inspector.finish

    def noting_start(self: Inspector, frame: Frame) -> Job:
        job = start(self, frame)
        parts[job] = seen[id(frame)]
        return job

    def faulty_finish(self: Inspector, job: Job, threshold: float | None) -> Inspection:
        fault = board.of_part(parts.pop(job), "engine-error", "engine-lost", "slow-inference") or {}
        if fault.get("kind") == "engine-error":
            finish(self, job, threshold)  # the slot is free again
            raise EngineError("the inference failed", got="a fault of the scenario")
        if fault.get("kind") == "engine-lost":
            raise EngineLostError("the GPU is lost", got="a fault of the scenario")
        if fault.get("kind") == "slow-inference":
            time.sleep(fault["by_ms"] / 1000)
        return finish(self, job, threshold)

    edge.cameras.folder.FolderCamera = FaultyCamera  # type: ignore[misc]
    Inspector.start, Inspector.finish = noting_start, faulty_finish  # type: ignore[method-assign]


def main() -> None:
    """Put the faults in, and run what the command line says."""
    folder, *command = sys.argv[1:]
    board = FaultBoard(Path(folder))
    step_clock(board)
    if command[0] == CONTROL:
        sys.argv = command
        runpy.run_module(CONTROL, run_name="__main__")
        return
    if "LINESIDE_CONTROL" in os.environ:
        fill_disk(board)
        wrap_runtime(board)
    else:
        wrap_control(folder)
    sys.argv = ["lineside", *command]
    import lineside

    lineside.main()


if __name__ == "__main__":
    main()

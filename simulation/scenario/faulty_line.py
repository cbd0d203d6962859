"""`lineside run LINE.toml --json` with the faults of a scenario: python -m simulation.scenario.faulty_line BOARD
LINE.toml

The line is the real one. It is handed a camera, an inspector and a wall clock that fail where the scenario says so, and
processes that are started with the same faults. The camera shows the part that the PLC triggered: part 1 is the
folder's first image, also after a restart of a process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

from edge.base.errors import LinesideError
from edge.line_control.job import ControlJob
from edge.line_control.start import MODULE, start_control
from edge.run.processes import Processes
from simulation.scenario.fault_board import FaultBoard

LOOK = 0.02  # s between two looks at the fault board


class FaultyProcesses(Processes):
    """Starts line control through this module as well. The runtime is this command once more in any case."""

    def __init__(self, board: Path) -> None:
        self._board = board

    def control(self, job: ControlJob) -> subprocess.Popen[bytes]:
        return start_control(job, [sys.executable, "-m", "simulation.scenario.faulty_line", str(self._board), MODULE])


class SteppingClock:
    """A wall clock that jumps, in s since 1970."""

    def __init__(self, board: FaultBoard) -> None:
        self._folder = board.folder
        self._steps = {number: fault["by_s"] for number, fault in enumerate(board.faults)
                       if fault["kind"] == "clock-step"}

    def __call__(self) -> float:
        return time.time() + sum(by for number, by in self._steps.items() if (self._folder / f"{number}.on").exists())


def fill_disk(board: FaultBoard) -> None:
    """Start a thread that lets this process write no file while the fault is on."""
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


def run_faulty_runtime(line: Path, board: FaultBoard) -> int:
    """Be the runtime, with a faulty camera, inspector, clock and disk. Returns the exit code."""
    from edge.run.runtime import Line
    from edge.run.start import run_runtime
    from simulation.scenario.faulty_parts import FaultyParts

    fill_disk(board)
    parts = FaultyParts(board)
    return run_runtime(line, as_json=True, make_line=partial(
        Line, make_camera=parts.make_camera, make_inspector=parts.make_inspector, wall_clock=SteppingClock(board)))


def main(folder: Path, line: str, job: str | None = None) -> int:
    """Be the process of the line that this one was started as. Returns the exit code."""
    board = FaultBoard(folder)
    if job is not None:
        from edge.line_control.process import main as run_control

        return run_control(job, SteppingClock(board))
    from edge.run.start import is_runtime, supervise

    try:
        if is_runtime():
            return run_faulty_runtime(Path(line), board)
        return supervise(Path(line), parts=0, as_json=True, processes=FaultyProcesses(folder))
    except LinesideError as error:
        print(f"lineside: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))

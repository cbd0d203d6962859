"""A PLC with Modbus for a test: on libmodbus, at the other end of a paced cable."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import pytest


class Plc:
    """A PLC at the other end of a cable. `log` holds what it executed: (what, part, code, value, time, clock)."""

    def __init__(self, programs: Path, folder: Path, session: int = 7) -> None:
        self._programs, self.folder, self.port = programs, folder, folder / "plc"
        self.lines: list[str] = []
        self.connect()
        self._plc = self._start("modbus_plc", folder / "far", "1", str(session))
        threading.Thread(target=self._read, daemon=True).start()

    def _start(self, program: str, *words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen([self._programs / program, *map(str, words)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        return process

    def connect(self) -> None:
        self._wire = self._start("paced_wire", self.port, self.folder / "far", 115200)

    def unplug(self) -> None:
        self._wire.kill()
        self._wire.wait()

    def _read(self) -> None:
        for line in self._plc.stdout:
            self.lines.append(line)

    def tell(self, *commands: str) -> None:
        self._plc.stdin.write("".join(f"{command}\n" for command in commands))
        self._plc.stdin.flush()

    def cut(self, yes: bool) -> None:
        self._wire.stdin.write("cut\n" if yes else "join\n")
        self._wire.stdin.flush()

    @property
    def log(self) -> list[tuple[str, int, int, int, int, int]]:
        form = re.compile(r"(\d+) (verdict|reject|fault) part (\d+) code (\d+) value (-?\d+) time (\d+)")
        found = [form.match(line) for line in list(self.lines)]
        return [(m[2], int(m[3]), int(m[4]), int(m[5]), int(m[6]), int(m[1])) for m in found if m]

    def triggered(self) -> dict[int, int]:
        """Parts, and the PLC's clock then."""
        found = [re.match(r"(\d+) trigger part (\d+)", line) for line in list(self.lines)]
        return {int(m[2]): int(m[1]) for m in found if m}

    def status(self) -> str:
        return next((line.split(" ", 1)[1].strip() for line in reversed(self.lines) if " state " in line), "")

    def end(self) -> None:
        for process in (self._plc, self._wire):
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def plc(programs, tmp_path):
    made = Plc(programs, tmp_path)
    yield made
    made.end()

"""A line of its own for a test: its folder with bundle and line file, the line, and a PLC simulator beside it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

LINESIDE = [sys.executable, "-m", "lineside"]
LINE = """
[line]
name = "test"
bundle = "bundle"
threads = 1
[camera]
kind = "folder"
path = "{camera}"
loop = {loop}
[plc]
kind = "frames"
port = "plc"
[belt]
travel_ms = {travel}
lead_ms = 100
{belt}
"""


class Rig:
    """A line's folder with bundle and line file, and a PLC simulator beside it."""

    def __init__(self, folder: Path, bundle: Path, camera: Path, loop: bool = False, travel: int = 600, belt: str = "") -> None:
        self.folder = folder
        self.travel = travel
        shutil.copytree(bundle, folder / "bundle")
        (folder / "line.toml").write_text(LINE.format(camera=camera, loop=str(loop).lower(), travel=travel, belt=belt))
        self.processes: list[subprocess.Popen] = []

    def plc(self, parts: int, rate: float = 15, *flags: str, **options) -> subprocess.Popen:
        extra = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        plc = subprocess.Popen(
            [*LINESIDE, "plc-simulator", "--port", str(self.folder / "plc"), "--log", str(self.folder / "plc.jsonl"), "--parts", str(parts),
             "--rate", str(rate), "--travel-ms", str(self.travel), "--json", *extra, *flags], stdout=subprocess.PIPE, text=True)
        self.processes.append(plc)
        wait_for(lambda: (self.folder / "plc").exists())
        return plc

    def run(self, *options: str, command: str = "run", env: dict[str, str] | None = None) -> subprocess.Popen:
        line = subprocess.Popen([*LINESIDE, command, str(self.folder / "line.toml"), "--json", *options], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=env)
        self.processes.append(line)
        return line

    def rows(self) -> list[sqlite3.Row]:
        return self.query("SELECT * FROM parts ORDER BY id")

    def query(self, sql: str) -> list[sqlite3.Row]:
        database = sqlite3.connect(self.folder / "journal.db")
        database.row_factory = sqlite3.Row
        try:
            return database.execute(sql).fetchall()
        except sqlite3.OperationalError:  # the line is just making the table
            return []
        finally:
            database.close()


def replay(session: Path, *options: object) -> tuple[int, dict, str]:
    """`lineside replay`: exit code, figures, and what it said."""
    done = subprocess.run([*LINESIDE, "replay", str(session), "--json", *map(str, options)], capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(line) -> dict[str, int]:
    """The processes of a line: "control" and "runtime"."""
    found = {}
    for pid in Path(f"/proc/{line.pid}/task/{line.pid}/children").read_text().split():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "edge.line_control.process" in command or "lineside" in command:  # else it is between fork and exec
            found["control" if "edge.line_control.process" in command else "runtime"] = int(pid)
    return found


@pytest.fixture
def rig(tmp_path, calibrated, cloth):
    rigs = []

    def make(**options) -> Rig:
        options.setdefault("camera", cloth / "test")
        rigs.append(Rig(tmp_path, calibrated, **options) if not rigs else rigs[0])
        return rigs[0]

    shutil.move(calibrated, calibrated.with_name("source"))
    calibrated = calibrated.with_name("source")
    yield make
    for made in rigs:
        for process in made.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def finish(process: subprocess.Popen, seconds: float = 60) -> tuple[dict, str]:
    out, err = process.communicate(timeout=seconds)
    return json.loads(out) if out.strip().startswith("{") else {}, err or ""


def reconcile(ledger: dict, plc: dict, rows) -> None:
    assert ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"] == len(rows) == plc["triggers"]
    assert sorted(plc["ejected_ids"]) == sorted(row["part"] for row in rows if row["verdict"] != "PASS")
    assert plc["wrong_part"] == plc["missed"] == plc["late_verdicts"] == 0

"""A line for a test: a folder with bundle and line file, the line's processes, and a PLC simulator.

See `rig` in conftest.py.
"""

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

    def __init__(self, folder: Path, bundle: Path | None = None, camera: Path | None = None, loop: bool = False,
                 travel: int = 600, belt: str = "") -> None:
        """bundle: is copied into the folder; None: the folder has bundle and line file already."""
        self.folder = folder
        self.travel = travel
        if bundle is not None:
            shutil.copytree(bundle, folder / "bundle")
            text = LINE.format(camera=camera, loop=str(loop).lower(), travel=travel, belt=belt)
            (folder / "line.toml").write_text(text)
        self.processes: list[subprocess.Popen] = []

    def plc(self, parts: int, rate: float = 15, *flags: str, **options) -> subprocess.Popen:
        extra = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        plc = subprocess.Popen(
            [*LINESIDE, "plc-simulator", "--port", str(self.folder / "plc"), "--log", str(self.folder / "plc.jsonl"),
             "--parts", str(parts), "--rate", str(rate), "--travel-ms", str(self.travel), "--json", *extra, *flags],
             stdout=subprocess.PIPE, text=True)
        self.processes.append(plc)
        wait_for(lambda: (self.folder / "plc").exists())
        return plc

    def run(self, *options: str, command: str = "run", env: dict[str, str] | None = None) -> subprocess.Popen:
        line = subprocess.Popen([*LINESIDE, command, str(self.folder / "line.toml"), "--json", *options],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.processes.append(line)
        return line

    def rows(self) -> list[sqlite3.Row]:
        return self.query("SELECT * FROM parts ORDER BY id")

    def events(self, *kinds: str) -> list[dict]:
        """The PLC's log so far; only events of these kinds, where some are given."""
        lines = (self.folder / "plc.jsonl").read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be half written
        return [entry for entry in entries if not kinds or entry["event"] in kinds]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

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
    """`lineside replay`: exit code, figures, and stderr."""
    done = subprocess.run([*LINESIDE, "replay", str(session), "--json", *map(str, options)], capture_output=True,
                          text=True, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def wait_for(condition, seconds: float = 30) -> None:
    """Wait until something holds; it fails the test where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def children(line) -> dict[str, int]:
    """The processes of a line: "control" and "runtime"."""
    found = {}
    for pid in Path(f"/proc/{line.pid}/task/{line.pid}/children").read_text().split():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "edge.line_control.process" in command or "lineside" in command:  # otherwise it is between fork and exec
            found["control" if "edge.line_control.process" in command else "runtime"] = int(pid)
    return found


@pytest.fixture
def rig(tmp_path, calibrated_once, cloth):
    """Makes the rig of a test, in its folder; its processes are killed at the end."""
    rigs = []

    def make(**options) -> Rig:
        options.setdefault("camera", cloth / "test")
        rigs.append(Rig(tmp_path, calibrated_once, **options) if not rigs else rigs[0])
        return rigs[0]

    yield make
    for made in rigs:
        made.close()


def finish(process: subprocess.Popen, seconds: float = 60) -> tuple[dict, str]:
    out, err = process.communicate(timeout=seconds)
    return json.loads(out) if out.strip().startswith("{") else {}, err or ""


def reconcile(ledger: dict, plc: dict, rows) -> None:
    assert ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"]
    assert ledger["triggers"] == len(rows) == plc["triggers"]
    assert sorted(plc["ejected_ids"]) == sorted(row["part"] for row in rows if row["verdict"] != "PASS")
    assert plc["wrong_part"] == plc["missed"] == plc["late_verdicts"] == 0

"""A new kind of PLC link is one file and one line in the registry; line files and lines then know it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.base.errors import InputError
from edge.line_file import read_line_file
from edge.plc.kinds import LINKS
from tests.rig import Rig, finish
from tests.toys.plc import ToySection

TOY = "tests.toys.plc:ToySection"
ROOT = Path(__file__).parents[3]
PARTS = 9
# Line control needs no registry: the job that the supervisor starts it with names the link's class.
PROGRAM = f'from edge.plc.kinds import LINKS; LINKS["toy"] = "{TOY}"; from lineside.cli import main; main()'
LINE = """
[line]
name = "toy"
bundle = "bundle"
[camera]
kind = "folder"
path = "frames"
[plc]
kind = "toy"
port = "told.jsonl"
{key} = 9
[belt]
travel_ms = 1500
"""


def line_file(folder: Path, key: str = "parts") -> Path:
    path = folder / "line.toml"
    path.write_text(LINE.format(key=key))
    return path


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(LINKS, "toy", TOY)


def test_a_line_file_takes_the_new_kind_with_its_own_keys(registered, tmp_path):
    section = read_line_file(line_file(tmp_path)).plc
    assert isinstance(section, ToySection)
    assert section.options(tmp_path) == {"port": str(tmp_path / "told.jsonl"), "parts": 9, "rate": 10}


def test_an_unknown_key_of_the_new_kind_is_refused_with_the_nearest_one(registered, tmp_path):
    with pytest.raises(InputError, match="did you mean 'parts'"):
        read_line_file(line_file(tmp_path, key="partss"))


def test_an_unregistered_kind_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(InputError, match="'frames', 'lines', 'modbus'"):
        read_line_file(line_file(tmp_path))


def test_a_line_runs_on_the_new_kind(tmp_path, frames):
    rig = Rig(tmp_path, ROOT / "simulation" / "demo_bundle", camera=frames)
    shutil.copytree(frames, tmp_path / "frames")
    line = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", str(line_file(tmp_path)), "--parts", str(PARTS), "--json"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ledger, err = finish(line)
    finally:
        line.kill()
        line.wait()
    assert line.returncode == 0, err
    rows = rig.rows()
    assert ledger["triggers"] == len(rows) == PARTS and ledger["wire"]["parts"] == PARTS
    told = [json.loads(text) for text in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert {entry["part"]: entry["verdict"] for entry in told if "verdict" in entry} == {
        row["part"]: row["verdict"] for row in rows}
    ejected = [row["part"] for row in rows if row["verdict"] != "PASS"]
    assert [entry["eject"] for entry in told if "eject" in entry] == ejected and {3, 6, 9} <= set(ejected)
    assert len(ejected) < PARTS and ledger["confirmed"] == len(ejected) and ledger["unconfirmed"] == 0

"""A new kind of camera is one file and one line in the registry; line files, `camera-test` and lines then know it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.base.errors import InputError
from edge.bundle.bundle import load_bundle
from edge.cameras.kinds import CAMERAS
from edge.inspection.inspector import Inspector
from edge.line_file import read_line_file
from edge.part.verdict import Verdict
from tests.rig import finish, reconcile
from tests.toys.camera import ToySection, toy_image

TOY = "tests.toys.camera:ToySection"
PARTS = 9
# The runtime is started by the same command as the line, so it has the kind as well.
PROGRAM = f'from edge.cameras.kinds import CAMERAS; CAMERAS["toy"] = "{TOY}"; from lineside.cli import main; main()'
LINE = """
[line]
name = "toy"
bundle = "bundle"
[camera]
kind = "toy"
{key} = 60
[plc]
kind = "frames"
port = "plc"
[belt]
travel_ms = 1000
"""


def line_file(folder: Path, key: str = "spot_px") -> Path:
    path = folder / "line.toml"
    path.write_text(LINE.format(key=key))
    return path


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(CAMERAS, "toy", TOY)


def test_a_line_file_takes_the_new_kind_with_its_own_keys(registered, tmp_path):
    section, = read_line_file(line_file(tmp_path)).camera
    assert isinstance(section, ToySection) and section.spot_px == 60


def test_an_unknown_key_of_the_new_kind_is_refused_with_the_nearest_one(registered, tmp_path):
    with pytest.raises(InputError, match="did you mean 'spot_px'"):
        read_line_file(line_file(tmp_path, key="spot_pxs"))


def test_an_unregistered_kind_is_refused_with_the_registered_ones(tmp_path):
    with pytest.raises(InputError, match="kind") as raised:
        read_line_file(line_file(tmp_path))
    assert "'toy'" in str(raised.value) and "'folder'" in str(raised.value)


def test_camera_test_runs_on_the_new_kind(registered, tmp_path, lineside):
    path, sheets = line_file(tmp_path), tmp_path / "out"
    code, out, err = lineside("camera-test", path, "--seconds", 0.3, "--rate", 30, "--out", sheets, "--json")
    assert code == 0, err
    report, = json.loads(out)["cameras"]
    assert report["kind"] == "toy" and report["frames"] == report["triggers"] > 3 and report["unanswered"] == 0
    assert (sheets / "line.png").is_file()


def test_a_line_runs_on_the_new_kind(line):
    path = line_file(line.folder)
    plc = line.plc(PARTS)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "run", str(path), "--parts", str(PARTS), "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line.processes.append(process)
    ledger, err = finish(process)
    assert process.returncode == 0, err
    summary, _ = finish(plc)
    rows = line.rows()
    reconcile(ledger, summary, rows)
    bundle = load_bundle(line.folder / "bundle")
    with Inspector(bundle) as inspector:
        threshold = bundle.calibrated_threshold(inspector.precision, inspector.backend).value
        expected = [inspector.inspect(toy_image(trigger, 60), threshold) for trigger in range(1, PARTS + 1)]
    assert [(row["image"], row["verdict"], row["score"]) for row in rows] == [
        (f"toy {trigger}", one.verdict, one.score) for trigger, one in enumerate(expected, 1)]
    assert [one.verdict for one in expected[:3]] == [Verdict.PASS, Verdict.PASS, Verdict.REJECT]

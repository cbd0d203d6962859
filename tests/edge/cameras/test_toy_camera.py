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
from tests.rig import Rig, finish, reconcile
from tests.toys.camera import ToySection, toy_image

TOY = "tests.toys.camera:ToySection"
BUNDLE = Path(__file__).parents[3] / "simulation" / "demo_bundle"
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
travel_ms = 1500
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


def test_an_unregistered_kind_is_refused_with_those_that_there_are(tmp_path):
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


def test_a_line_runs_on_the_new_kind(tmp_path):
    rig = Rig(tmp_path, BUNDLE, camera=tmp_path, travel=1500)
    line_file(tmp_path)
    plc = rig.plc(PARTS, rate=15)
    line = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", str(tmp_path / "line.toml"), "--parts", str(PARTS), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rig.processes.append(line)
    try:
        ledger, err = finish(line)
        assert line.returncode == 0, err
        summary, _ = finish(plc)
    finally:
        for process in rig.processes:
            process.kill()
            process.wait()
    rows = rig.rows()
    reconcile(ledger, summary, rows)
    bundle = load_bundle(BUNDLE)
    with Inspector(bundle) as inspector:
        threshold = bundle.calibrated_threshold(inspector.precision, inspector.backend).value
        expected = [inspector.inspect(toy_image(trigger, 60), threshold) for trigger in range(1, PARTS + 1)]
    assert [(row["image"], row["verdict"], row["score"]) for row in rows] == [
        (f"toy {trigger}", one.verdict, one.score) for trigger, one in enumerate(expected, 1)]
    assert [one.verdict for one in expected[:3]] == [Verdict.PASS, Verdict.PASS, Verdict.REJECT]

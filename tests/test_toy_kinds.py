"""A line runs on new kinds alone: camera, PLC link, engine and detector, each one file and one line in a registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calib.threshold import calibrate
from detectors.fit import Budget, Settings, fit
from detectors.registry import DETECTORS
from edge.bundle.bundle import load_bundle
from edge.cameras.kinds import CAMERAS
from edge.engines.backends import BACKENDS
from edge.inspection.inspector import Inspector
from edge.part.verdict import Verdict
from edge.plc.kinds import LINKS
from export.onnx import export_run
from simulation.render.surface import Surface, render_folder
from tests.rig import finish
from tests.toys.camera import toy_image

ROOT = Path(__file__).parents[1]
PARTS, SPOT = 6, 60
KINDS = (  # registry, where it is, the toy in it
    (CAMERAS, "edge.cameras.kinds:CAMERAS", "tests.toys.camera:ToySection"),
    (LINKS, "edge.plc.kinds:LINKS", "tests.toys.plc:ToySection"),
    (BACKENDS, "edge.engines.backends:BACKENDS", "tests.toys.engine:Toy"),
    (DETECTORS, "detectors.registry:DETECTORS", "tests.toys.detector:ToyDetector"),
)
REGISTER = "; ".join(f"from {home.replace(':', ' import ')}; {home.partition(':')[2]}['toy'] = {kind!r}"
                     for _, home, kind in KINDS)
LINE = f"""
[line]
name = "toys"
bundle = "bundle"
[camera]
kind = "toy"
spot_px = {SPOT}
[plc]
kind = "toy"
port = "told.jsonl"
parts = {PARTS}
rate = 2
[belt]
travel_ms = 2000
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A line of toys, whose bundle is a toy detector with a threshold for the toy engine."""
    for registry, _, kind in KINDS:
        monkeypatch.setitem(registry, "toy", kind)
    render_folder(tmp_path / "cloth", Surface("woven", 7), train_good=12, test_good=12, defective=0)
    fit(Settings("toy", seed=1), tmp_path / "cloth", tmp_path / "run", Budget(steps=60))
    export_run(tmp_path / "run", tmp_path / "bundle")
    calibrate(load_bundle(tmp_path / "bundle"), tmp_path / "cloth" / "test" / "good", 0.1, "toy")
    (tmp_path / "line.toml").write_text(LINE)
    return tmp_path


def test_a_line_runs_on_a_toy_camera_link_engine_and_detector(folder):
    program = f"{REGISTER}; from lineside.cli import main; main()"
    words = ["run", str(folder / "line.toml"), "--backend", "toy", "--parts", str(PARTS), "--json"]
    line = subprocess.Popen([sys.executable, "-c", program, *words], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    try:
        ledger, err = finish(line)
    finally:
        line.kill()
        line.wait()
    assert line.returncode == 0 and "on toy" in err, err
    assert ledger["triggers"] == PARTS == ledger["passed"] + ledger["rejected"] and not ledger["causes"]
    bundle = load_bundle(folder / "bundle")
    assert bundle.card.detector == "toy"
    with Inspector(bundle, backend="toy") as inspector:
        threshold = bundle.calibrated_threshold("fp32", "toy").value
        expected = [inspector.inspect(toy_image(part, SPOT), threshold).verdict for part in range(1, PARTS + 1)]
    told = [json.loads(text) for text in (folder / "told.jsonl").read_text().splitlines()]
    assert [Verdict(entry["verdict"]) for entry in told if "verdict" in entry] == expected

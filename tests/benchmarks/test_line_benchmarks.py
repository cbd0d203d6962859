"""The benchmarks that run a real line: efficiency, overhead, peers, start, memory, rate and scaling."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.bundle.bundle import load_bundle
from edge.engines.openvino_graphs import core
from edge.inspection.golden import read_golden

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, FOLDER / f"{name}.py", *map(str, words)], capture_output=True, text=True,
                          timeout=200)


def figures(done: subprocess.CompletedProcess[str]) -> tuple[dict, dict]:
    """All figures, and those of the only bundle."""
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    (row,) = printed["bundles"]
    assert row["detector"] == "sidn" and row["precision"] == "fp32" and printed["device"]
    return printed, row


def load(name: str):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def test_the_line_against_its_engine_is_measured(calibrated, tmp_path):
    printed, row = figures(run("efficiency", "--bundles", calibrated, "--rounds", 1, "--seconds", 0.5, "--precision",
                               "fp32", "--json", "--out", tmp_path / "picture.png"))
    assert 0 < printed["worst"] == row["ratio"] == pytest.approx(row["line_fps"] / row["bare_fps"], abs=0.01)
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_what_a_frame_costs_outside_of_the_engine_is_measured(calibrated, tmp_path, monkeypatch, capsys):
    overhead = load("overhead")
    monkeypatch.setattr(overhead, "LARGE", (200, 300))
    monkeypatch.setattr(sys, "argv", ["overhead", "--bundles", str(calibrated), "--frames", "60", "--rounds", "2",
                                      "--json", "--out", str(tmp_path / "picture.png")])
    assert overhead.main() == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed["bundles"]
    assert 0 < row["p50_ms"] == printed["p50_ms"] <= row["p99_ms"] == printed["p99_ms"] <= row["max_ms"]
    assert row["in_tiles"]["frame"] == "300x200" and row["in_tiles"]["tiles"] == 12
    assert printed["over_inference"] == row["in_tiles"]["over_inference"] > -0.9
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_start_of_a_line_is_measured(calibrated, tmp_path):
    printed, row = figures(run("startup", "--bundles", calibrated, "--starts", 1, "--json", "--out",
                               tmp_path / "picture.png"))
    assert 0 < row["ready_s"] < row["median_s"] == row["highest_s"] == printed["worst"] and row["cold_s"] > 0
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_memory_of_a_line_is_measured(calibrated, tmp_path):
    printed, row = figures(run("memory", "--bundles", calibrated, "--parts", 40, "--json", "--out",
                               tmp_path / "picture.png"))
    assert printed["worst"] == row["total_mb"] == pytest.approx(sum(row["resident_mb"].values()), abs=0.3)
    assert row["resident_mb"]["control"] < 60 < row["resident_mb"]["runtime"] and len(row["looks_mb"]) == 20
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_highest_rate_of_a_line_is_measured(calibrated, tmp_path):
    printed, row = figures(run("line_speed", "--bundles", calibrated, "--seconds", 0.2, "--cases", "tiles", "--json",
                               "--out", tmp_path / "picture.png"))
    assert printed["deadline_ms"] == 500 and [case["tiles"] for case in row["cases"]] == [None, 2, 8]
    for case in row["cases"]:
        assert 0 < case["at_parts_per_s"] < case["parts_per_s"] == case["frames_per_s"] and case["parts"] >= 20
        assert case["p50_ms"] <= case["p99_ms"] <= case["p99.9_ms"] <= case["max_ms"]
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_what_frames_and_cameras_cost_is_measured(calibrated, tmp_path, monkeypatch, capsys):
    scaling = load("scaling")
    monkeypatch.setattr(scaling, "GRIDS", ((1, 1), (1, 2), (2, 2)))
    monkeypatch.setattr(scaling, "CAMERAS", (1, 4))
    monkeypatch.setattr(sys, "argv", ["scaling", "--bundles", str(calibrated), "--rounds", "1", "--seconds", "0.2",
                                      "--json", "--out", str(tmp_path / "picture.png")])
    assert scaling.main() == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed["bundles"]
    assert row["tiles"] == [1, 2,
                            4] and row["areas_mpx"] == sorted(row["areas_mpx"]) and printed["r2"] == row["r2"] <= 1
    assert row["cameras_share"]["1"] == 1 and printed["four_cameras"] == row["cameras_share"]["4"] > 0
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_a_straight_line_has_an_r2_of_one_and_noise_has_less():
    fit_line = load("scaling").fit_line
    assert fit_line([1, 2, 3, 4], [5, 7, 9, 11]) == pytest.approx((2, 3, 1))
    assert fit_line([1, 2, 3, 4], [5, 9, 6, 11])[2] < 0.8


def test_the_line_is_measured_against_its_peers(calibrated, fitted_run, tmp_path):
    folder = tmp_path / "sidn.bundle"
    shutil.copytree(calibrated, folder)
    shutil.copytree(fitted_run, tmp_path / "sidn.run")
    left_out = [word for name in ("torch.compile", "Model API", "anomalib", "anomalib f32")
                for word in ("--without", name)]
    printed, row = figures(run("peers", "--bundles", folder, "--rounds", 1, "--seconds", 0.3, *left_out, "--json",
                               "--out", tmp_path / "picture.png"))
    assert set(row["ratios"]) == {"eager PyTorch",
                                  "ONNX Runtime"} == set(printed["geometric_means"]) and not row["absent"]
    assert row["weights"] == "of the run" and max(row["scores_apart"].values()) < 1e-2
    assert row["ratios"]["ONNX Runtime"] == pytest.approx(row["fps"]["line fp32"] / row["fps"]["ONNX Runtime"],
                                                          abs=0.01)
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_graph_for_the_peers_gives_the_bundles_map(exported, tmp_path):
    peers = load("peers")
    bundle = load_bundle(exported)
    _, frames, maps = read_golden(bundle)
    peers.peer_graph(bundle, 0.5, tmp_path / "peer.xml")
    model = core().compile_model(tmp_path / "peer.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for frame, expected in zip(frames, maps, strict=True):
        image = np.repeat(frame, 3, axis=2).transpose(2, 0, 1)[None].astype(np.float32) / 255
        found = dict(zip((next(iter(output.names)) for output in model.outputs), model(image).values(), strict=True))
        assert found["anomaly_map"][0, 0] == pytest.approx(expected, abs=2e-3 * float(np.ptp(maps)))
        assert found["pred_score"] == pytest.approx(found["anomaly_map"].max())
        assert bool(found["pred_label"][0]) == (found["pred_score"][0] > 0.5)


@pytest.mark.parametrize("name", ["efficiency", "startup", "memory", "line_speed", "scaling", "peers", "overhead"])
def test_a_benchmark_without_a_bundle_says_so(tmp_path, name):
    done = run(name, "--bundles", tmp_path)
    assert done.returncode == 2 and "no bundle in" in done.stderr and "Traceback" not in done.stderr

"""The benchmarks that run a real line: against its bare engine, its start, its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, FOLDER / f"{name}.py", *map(str, words)], capture_output=True, text=True, timeout=200)


def figures(done: subprocess.CompletedProcess[str]) -> tuple[dict, dict]:
    """All, and the only bundle's."""
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    (row,) = printed["bundles"]
    assert row["detector"] == "sidn" and row["precision"] == "fp32" and printed["device"]
    return printed, row


def test_the_line_against_its_engine_is_measured(calibrated, tmp_path):
    printed, row = figures(run("efficiency", "--bundles", calibrated, "--rounds", 1, "--seconds", 0.5, "--precision", "fp32", "--json",
                               "--out", tmp_path / "picture.png"))
    assert 0 < printed["worst"] == row["ratio"] == pytest.approx(row["line_fps"] / row["bare_fps"], abs=0.01)
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_start_of_a_line_is_measured(calibrated, tmp_path):
    printed, row = figures(run("startup", "--bundles", calibrated, "--starts", 1, "--json", "--out", tmp_path / "picture.png"))
    assert 0 < row["ready_s"] < row["median_s"] == row["highest_s"] == printed["worst"] and row["cold_s"] > 0
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_memory_of_a_line_is_measured(calibrated, tmp_path):
    printed, row = figures(run("memory", "--bundles", calibrated, "--parts", 40, "--json", "--out", tmp_path / "picture.png"))
    assert printed["worst"] == row["total_mb"] == pytest.approx(sum(row["resident_mb"].values()), abs=0.3)
    assert row["resident_mb"]["control"] < 60 < row["resident_mb"]["runtime"] and len(row["looks_mb"]) == 20
    assert (tmp_path / "picture.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["efficiency", "startup", "memory"])
def test_a_benchmark_without_a_bundle_says_so(tmp_path, name):
    done = run(name, "--bundles", tmp_path)
    assert done.returncode == 2 and "no bundle in" in done.stderr and "Traceback" not in done.stderr

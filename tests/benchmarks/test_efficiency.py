"""The efficiency benchmark: a real line against its bare engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "efficiency.py"


def test_the_line_against_its_engine_is_measured(calibrated, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--bundles", calibrated, "--rounds", "1", "--seconds", "0.5",
                           "--precision", "fp32", "--json", "--out", tmp_path / "efficiency.png"],
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    (row,) = printed["bundles"]
    assert 0 < printed["worst"] == row["ratio"] == pytest.approx(row["line_fps"] / row["bare_fps"], abs=0.01)
    assert row["detector"] == "sidn" and row["precision"] == "fp32" and (tmp_path / "efficiency.png").stat().st_size > 5000


def test_a_benchmark_without_a_bundle_says_so(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--bundles", tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no bundle in" in done.stderr and "Traceback" not in done.stderr

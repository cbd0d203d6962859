"""The precision benchmark: all precisions in turn, compared with float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "precision.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=200,
                          env={**os.environ, "COLUMNS": "220"})


def test_it_measures_each_precision_against_float32(quantised, cloth):
    done = run(quantised[0], "--data", cloth, "--rounds", 4, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    rows = printed["bundles"][0]["precisions"]
    assert set(rows) == set(quantised[1]["precisions"]) and rows["fp32"]["times_as_fast"] == 1
    assert printed["rounds"] == 4
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] and row["offered"] and 0 <= row["pixel_auroc"] <= 1


def test_it_prints_a_table_and_names_a_bundle_that_is_none(quantised, tmp_path):
    done = run(quantised[0], "--rounds", 2)
    assert done.returncode == 0 and "int8" in done.stdout and "times as" in done.stdout
    done = run(tmp_path, "--rounds", 2)
    assert done.returncode == 2 and "model.toml" in done.stderr and "Traceback" not in done.stderr

"""The lateness benchmark: every reject is measured, in both ways. How late they are depends on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "lateness.py"


@pytest.mark.timeout(120)
def test_each_reject_is_measured(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--rejects", "150", "--rate", "100", "--out", tmp_path / "late.png",
                           "--json"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for how in ("process", "thread"):
        assert found[how]["rejects"] == found[how]["triggers"] == 150 and found[how]["refused"] == 0
        assert 0 < found[how]["p50_ms"] <= found[how]["p99_ms"] <= found[how]["p99.9_ms"] <= found[how]["max_ms"]
    assert (tmp_path / "late.png").stat().st_size > 5000

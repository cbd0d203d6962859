"""The demo with all of its parts keeps its promise: few defects escape and few good parts are rejected."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECALL = 0.95
FALSE_REJECT_RATE = 0.05


@pytest.fixture(scope="module")
def ledger(tmp_path_factory) -> dict:
    """The summary of `lineside demo`, at twice its rate."""
    out: Path = tmp_path_factory.mktemp("promise") / "demo"
    done = subprocess.run([sys.executable, "-m", "lineside", "demo", "--out", out, "--rate", "40", "--json"],
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_demo_inspects_all_of_its_parts(ledger):
    assert ledger["triggers"] == 200 and ledger["defective"] == 30
    # an uninspected part is ejected, and would count as a defect that was found
    assert ledger["uninspected"] == 0, ledger["causes"]


def test_few_defects_escape_the_demo(ledger):
    assert ledger["recall"] >= RECALL, (
        f"escaped: {ledger['escaped_ids']}; make demo-bundle fits the packaged bundle again")


def test_few_good_parts_of_the_demo_are_rejected(ledger):
    assert ledger["false_reject_rate"] <= FALSE_REJECT_RATE, f"rejected: {ledger['false_reject_ids']}"

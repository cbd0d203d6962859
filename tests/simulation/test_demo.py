"""The demo's own arithmetic, and its packaged bundle."""

from __future__ import annotations

import json
import sqlite3
from importlib.resources import files
from pathlib import Path

import pytest

from edge.base.errors import InputError
from edge.bundle.bundle import load_bundle
from edge.line_file import read_line_file
from simulation.demo import prepare_demo, summarise

PACKAGED = Path(str(files("simulation") / "demo_bundle"))


def test_the_packaged_bundle_is_whole_calibrated_and_small():
    threshold = load_bundle(PACKAGED).calibrated_threshold("fp32", "openvino")
    assert threshold.good_parts >= 300 and threshold.false_reject_rate <= 0.02
    # half of it golden maps
    assert sum(file.stat().st_size for file in PACKAGED.rglob("*") if file.is_file()) <= 4_000_000


def test_the_packaged_bundle_names_no_folder_of_a_machine():
    assert not Path(load_bundle(PACKAGED).images()["data"]).is_absolute()


def test_the_demos_line_file_is_valid_and_an_older_demo_is_replaced(tmp_path):
    for _ in range(2):
        rows = prepare_demo(tmp_path / "demo", None, parts=4, seed=0)
        assert len(rows) == 4 and len(list((tmp_path / "demo" / "parts" / "frames").iterdir())) == 4
        assert read_line_file(tmp_path / "demo" / "line.toml").line.name == "demo"


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "line.toml").write_text("[line]")
    with pytest.raises(InputError, match="other than a demo"):
        prepare_demo(tmp_path, None, parts=2, seed=0)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.fixture
def ended(tmp_path):
    """A demo of five parts: 1 and 4 are defective, 1 and 2 were rejected, 5 was not inspected."""
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("CREATE TABLE parts (part, verdict)")
        verdicts = [(1, "REJECT"), (2, "REJECT"), (3, "PASS"), (4, "PASS"), (5, "UNINSPECTED")]
        database.executemany("INSERT INTO parts VALUES (?, ?)", verdicts)
    database.close()
    ledger = {"triggers": 5, "passed": 2, "rejected": 2, "uninspected": 1, "causes": {"late": 1}, "latency_ms": {}}
    rows = [{"part": i, "label": "hole" if i in (0, 3) else "good"} for i in range(5)]

    def summary(ejected, **changes):
        plc = {"event": "summary", "triggers": 5, "ejected_ids": ejected}
        (tmp_path / "plc.jsonl").write_text('{"event": "trigger"}\n' + json.dumps(plc) + "\n")
        return summarise(tmp_path, {**ledger, **changes}, rows)

    return summary


def test_the_summary_counts_by_the_rendered_truth(ended):
    summary = ended([5, 2, 1])
    assert summary["ejected_ids_expected"] == summary["ejected_ids_by_plc"] == [1, 2, 5] and summary["reconciled"]
    assert summary["recall"] == 0.5 and summary["escaped_ids"] == [4]
    assert summary["false_reject_rate"] == pytest.approx(2 / 3) and summary["false_reject_ids"] == [2, 5]


@pytest.mark.parametrize("ejected", [[1, 2], [1, 2, 3, 5], [1, 3, 5]])
def test_another_part_ejected_than_expected_does_not_reconcile(ended, ejected):
    assert not ended(ejected)["reconciled"]


def test_counts_that_do_not_add_up_do_not_reconcile(ended):
    assert not ended([1, 2, 5], passed=3)["reconciled"]

"""`lineside simulate`: scenarios, what is reconciled, and line control in virtual time."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.base.errors import InputError
from simulation.scenario.file import FAULTS, kind_of, read_scenario
from simulation.scenario.reconcile import Evidence, Occurrence, reconcile

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "benchmarks" / "scenarios").glob("*.toml"))


def test_there_are_scenarios_for_every_kind_of_fault():
    files = [read_scenario(path) for path in SCENARIOS]
    assert len(files) >= 15
    assert {kind_of(fault) for file in files for fault in file.faults} == set(FAULTS)
    documented = (ROOT / "docs" / "simulate.md").read_text()
    assert all(f"`{kind}`" in documented for kind in FAULTS)


@pytest.mark.parametrize(("text", "words"), [
    ('about = "x"\nrat = 5', "did you mean 'rate'"), ("count = 5", "'about' is missing"),
    ('about = "x"\nlead_ms = 900', "below travel_ms"), ('about = "x"\n[[fault]]\nkind = "flood"', "no known kind"),
    ('about = "x"\n[[fault]]\nkind = "kill"\nat_part = 3', "process"),
    ('about = "x"\ncount = 10\n[[fault]]\nkind = "kill"\nprocess = "plc"\nat_part = 3', "process"),
    ('about = "x"\ncount = 10\n[[fault]]\nkind = "restart"\nat_part = 30', "after the last part"),
    ('about = "x"\ntime = "virtual"\n[[fault]]\nkind = "restart"\nat_part = 3', "[virtual] with rates"),
    ("about = ", "not valid TOML"),
])
def test_a_wrong_scenario_names_the_key(tmp_path, text, words):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InputError) as error:
        read_scenario(tmp_path / "s.toml")
    assert words in str(error.value)


def simulate(tmp_path, text: str) -> tuple[int, dict, Path]:
    (tmp_path / "s.toml").write_text(text)
    done = subprocess.run([sys.executable, "-m", "lineside", "simulate", tmp_path / "s.toml", "--out", tmp_path / "out",
                           "--json"],
                          capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), tmp_path / "out"


def test_a_killed_runtime_and_frames_that_go_wrong_reconcile(tmp_path):
    code, report, out = simulate(tmp_path, '''about = "x"
count = 100
rate = 20
[[fault]]
kind = "frames-swapped"
at_part = 20
[[fault]]
kind = "frame-truncated"
at_part = 30
[[fault]]
kind = "kill"
process = "runtime"
at_part = 60
[expect]
seen = { camera = 1 }
restarts = 1
''')
    assert code == 0 and report["reconciled"], report["failures"]
    assert report["triggers"] == report["passed"] + report["rejected"] + report["uninspected"]
    assert report["restarts"] == 1
    assert {part["why"] for part in report["differences"]
            if part["cause"] == "camera"} == {"camera: fault 2 (frame-truncated)"}
    assert report["timelines"] and all((out / "timelines" / Path(name).name).stat().st_size > 1000
                                       for name in report["timelines"])


def test_what_a_scenario_expects_and_does_not_get_is_a_failure(tmp_path):
    code, report, _ = simulate(tmp_path,
                               'about = "x"\ncount = 20\nrate = 20\n[expect]\nseen = { late = 3 }\nrestarts = 1\n')
    assert code == 1 and [failure["rule"] for failure in report["failures"]] == ["expect", "expect"]


def evidence() -> Evidence:
    """Three parts: a good one that passed, a bad one that was ejected, a good one that was late and ejected."""
    log = []
    for part, by in ((1, None), (2, "reject"), (3, "reject")):
        log += [{"t": part * 1.0, "event": "trigger", "part": part, "encoder": part * 100}]
        log += [{"t": part + 0.01, "event": "taken", "part": part}]
        log += [{"t": part + 0.4, "event": "reject", "part": part, "ack": 0}] if by else []
        log += [{"t": part + 0.5, "event": "ejected", "part": part, "by": by} if by
                else {"t": part + 0.5, "event": "passed", "part": part}]
    rows = [dict(part=part, encoder=part * 100, verdict=verdict, cause=cause, score=score,
                 image=None if cause else f"{part}.png")
            for part, verdict, cause, score in ((1, "PASS", None, 0.1), (2, "REJECT", None, 0.9),
                                                (3, "UNINSPECTED", "late", None))]
    ledger = {"triggers": 3, "passed": 1, "rejected": 1, "uninspected": 1, "causes": {"late": 1}}
    summary = {"wrong_part": 0, "missed": 0, "escaped_ids": [], "ended": "parts"}
    return Evidence(log, summary, rows, [ledger], {1: "good", 2: "hole", 3: "good"}, {n: f"{n}.png" for n in (1, 2, 3)},
                    {1: ("PASS", 0.1), 2: ("REJECT", 0.9)}, [Occurrence(0, "frame-late", 3.0, 3.1, (3,))],
                    ["frame-late"], [0])


def test_what_agrees_reconciles_and_says_why_a_good_part_was_ejected():
    result = reconcile(evidence())
    assert not result.failures and [(part.part, part.difference, part.why) for part in result.differences] == [
        (3, "good and ejected", "late: fault 1 (frame-late)")]


def doctored(change) -> set[str]:
    found = copy.deepcopy(evidence())
    change(found)
    return {failure.rule for failure in reconcile(found).failures}


@pytest.mark.parametrize(("change", "rule"), [
    (lambda e: e.rows.pop(), "one-row"), (lambda e: e.rows.append(e.rows[0]), "one-row"),
    (lambda e: e.rows[0].update(part=9), "one-row"), (lambda e: e.rows[0].update(image="2.png"), "identity"),
    (lambda e: e.rows[0].update(encoder=7), "identity"), 
    (lambda e: e.inspected.update({1: ("REJECT", 0.9)}), "identity"),
    (lambda e: e.rows[1].update(score=0.8), "identity"),
    (lambda e: e.log[-1].update(event="passed"), "escape"),
    (lambda e: e.log[2].update(event="ejected", by="reject"), "bookkeeping"),
    (lambda e: e.occurrences.clear(), "cause"), (lambda e: e.occurrences.clear(), "fault"),
    (lambda e: e.log.pop(), "cause"), (lambda e: e.ledgers[0].update(passed=2), "ledger"),
    (lambda e: e.ledgers[0].update(causes={}), "ledger"), (lambda e: e.summary.update(wrong_part=1), "ejector"),
    (lambda e: e.summary.update(missed=1), "ejector"), (lambda e: e.summary.update(escaped_ids=[3]), "escape"),
    (lambda e: e.summary.update(ended="line not ready"), "end"), (lambda e: e.exit_codes.append(2), "end"),
])
def test_each_rule_fails_on_a_log_that_breaks_it(change, rule):
    assert rule in doctored(change)


def test_twenty_thousand_parts_in_virtual_time(tmp_path):
    (tmp_path / "s.toml").write_text('about = "x"\ntime = "virtual"\ncount = 20000\nseed = 5\n')
    done = subprocess.run([sys.executable, "-m", "lineside", "simulate", tmp_path / "s.toml", "--json"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["triggers"] == counts["passed"] + counts["rejected"] + counts["uninspected"] > 19_000
    assert counts["control_restarts"] and counts["lost_links"] and counts["speed_changes"] and counts["wrong_part"] == 0


def test_a_line_control_that_forgets_is_found_out_in_virtual_time(monkeypatch):
    from edge.base.errors import LinesideError
    from edge.line_control.state import LineState
    from simulation.scenario.file import Scenario
    from simulation.virtual.line import VirtualLine

    real = LineState.restore
    monkeypatch.setattr(LineState, "restore", lambda self, parts, ledger, now: real(self, parts[:-1], ledger, now))
    with pytest.raises(LinesideError, match=r"add up|no end|outcome|opened no part"):
        VirtualLine(Scenario(about="x", time="virtual", count=30_000, seed=1)).run()

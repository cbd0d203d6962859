"""Whatever process of a line is killed, no part gets past uninspected, every part has one row, and the line comes back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.rig import children, finish, wait_for


def check(rig, ledger: dict, plc: dict) -> list:
    """Every part has one row and one outcome on both sides, and what was not inspected was ejected."""
    rows = rig.rows()
    assert ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"] == len(rows)
    # what was not taken, the PLC ejects itself
    assert plc["triggers"] == len(rows) + plc["refused"] + plc["unacknowledged"]
    assert len({row["part"] for row in rows}) == len(rows)
    assert plc["escaped_ids"] == [] and plc["wrong_part"] == plc["missed"] == plc["late_verdicts"] == 0
    assert set(row["part"] for row in rows if row["verdict"] != "PASS") <= set(plc["ejected_ids"])
    assert sum(ledger["causes"].values()) == ledger["uninspected"]
    return rows


def test_a_killed_runtime_costs_the_parts_without_a_verdict_and_comes_back(rig):
    made = rig(loop=True, travel=1000)
    plc = made.plc(50, 20)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 10)
    os.kill(children(line)["runtime"], signal.SIGKILL)
    summary, _ = finish(plc)
    line.send_signal(signal.SIGTERM)
    ledger, messages = finish(line)
    rows = check(made, ledger, summary)
    assert line.returncode == 0 and "the runtime ended with SIGKILL and was restarted" in messages
    assert "Traceback" not in messages
    assert {row["cause"] for row in rows if row["verdict"] == "UNINSPECTED"} <= {"restart"}
    assert "late" not in ledger["causes"]
    passed = {row["part"] for row in rows if row["verdict"] == "PASS"}
    # a trigger that was refused as well, by the PLC itself
    assert set(summary["ejected_ids"]) == set(range(1, 51)) - passed
    assert not list(made.folder.glob("*.belt"))


def test_a_killed_line_control_is_back_within_two_seconds_and_its_parts_are_uninspected(rig):
    made = rig(loop=True, travel=1500)
    plc = made.plc(70, 20)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 10)
    pids = children(line)
    os.kill(pids["runtime"], signal.SIGSTOP)  # parts without a verdict
    time.sleep(0.3)
    os.kill(pids["control"], signal.SIGKILL)
    os.kill(pids["runtime"], signal.SIGCONT)
    summary, _ = finish(plc)
    line.send_signal(signal.SIGTERM)
    ledger, messages = finish(line)
    rows = check(made, ledger, summary)
    assert line.returncode == 0
    assert "line control ended with SIGKILL and was restarted" in messages and "Traceback" not in messages
    assert ledger["causes"].get("restart", 0) >= 1
    states = [(entry["t"], entry.get("state", "lost")) for entry in made.events("line_state", "heartbeat_lost")]
    ready = next(number for number, (_, state) in enumerate(states) if state in ("ready", "degraded"))
    gone, state = states[ready + 1]  # the heartbeat of the next one may come before the first one's is missed
    assert state in ("lost", "starting")
    assert next(t for t, state in states[ready + 2:] if state in ("ready", "degraded")) - gone < 2.0
    assert {row["cause"] for row in rows if row["verdict"] == "UNINSPECTED"} == {"restart"}


def test_a_process_that_dies_again_and_again_ends_the_line(rig):
    made = rig(loop=True)
    plc = made.plc(0)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 2)
    old = 0
    for _ in range(6):
        wait_for(lambda old=old: children(line).get("control", old) != old)
        old = children(line)["control"]
        os.kill(old, signal.SIGKILL)
    _, messages = finish(line)
    assert line.returncode == 1 and "for the 6th time in 5 minutes: the line ends" in messages, messages
    plc.send_signal(signal.SIGTERM)
    assert finish(plc)[0]["escaped_ids"] == []


def test_when_the_supervisor_is_killed_the_others_end_and_the_next_run_writes_what_was_left(rig):
    made = rig(loop=True, travel=1000)
    plc = made.plc(0, 20)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 10)
    pids = children(line)
    os.kill(pids["runtime"], signal.SIGSTOP)  # so that it cannot write what line control ends
    time.sleep(0.3)
    line.kill()
    wait_for(lambda: not Path(f"/proc/{pids['control']}").exists()
             or "Z" in Path(f"/proc/{pids['control']}/stat").read_text(), 15)
    os.kill(pids["runtime"], signal.SIGKILL)
    assert list(made.folder.glob("*.belt"))
    count = len(made.rows())
    second = made.run()
    wait_for(lambda: len(made.rows()) > count + 5)
    second.send_signal(signal.SIGTERM)
    _, messages = finish(second)
    assert second.returncode == 0, messages
    plc.send_signal(signal.SIGTERM)
    summary, _ = finish(plc)
    rows = made.rows()
    assert len({row["part"] for row in rows}) == len(rows)
    assert len(rows) == summary["triggers"] - summary["refused"] - summary["unacknowledged"]
    assert summary["escaped_ids"] == [] and {row["cause"] for row in rows} <= {None, "restart", "stopped"}


@pytest.mark.parametrize("name", ["control", "runtime"])
def test_a_process_that_stands_still_lets_nothing_pass_uninspected(rig, name):
    made = rig(loop=True, travel=600)
    plc = made.plc(40, 20)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 10)
    pid = children(line)[name]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)  # longer than the way to the ejector
    os.kill(pid, signal.SIGCONT)
    summary, _ = finish(plc)
    line.send_signal(signal.SIGTERM)
    ledger, messages = finish(line)
    rows = made.rows()
    assert line.returncode == 0, messages
    assert ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"] == len(rows)
    assert summary["escaped_ids"] == [] and summary["wrong_part"] == 0
    assert ledger["uninspected"] >= 1


def test_a_challenge_is_passed_and_a_fault_stops_the_line_until_it_is_cleared(rig, lineside, cloth, tmp_path):
    (tmp_path / "bad").mkdir()
    made = rig(loop=True, camera=tmp_path / "bad", belt='rejects_in_a_row = 12\nstop_on = ["rejects"]')
    inspected = json.loads(lineside("inspect", made.folder / "bundle", cloth / "test", "--out", tmp_path / "overlays",
                                    "--json")[1])
    for row in inspected:
        if row["verdict"] == "REJECT":
            shutil.copy(row["image"], tmp_path / "bad" / f"{len(list((tmp_path / 'bad').iterdir()))}.png")
    plc = made.plc(30, 10, clear=1.0)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 2)
    code, out, err = lineside("challenge", made.folder / "line.toml")
    assert code == 0 and "REJECT, commanded, seen to leave" in out, err
    summary, _ = finish(plc)
    code, out, _ = lineside("clear", made.folder / "line.toml")
    assert code == 0 and "takes parts again" in out
    line.send_signal(signal.SIGTERM)
    ledger, messages = finish(line)
    check(made, ledger, summary)
    assert summary["faults"].get("5", 0) >= 1 and "fault" in summary["line_states_seen"]
    assert "12 parts in a row were rejected" in messages
    assert lineside("challenge", made.folder / "line.toml")[0] == 2

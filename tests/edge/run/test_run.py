"""`lineside run` against the PLC simulator, two processes over a pseudo serial port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.rig import LINESIDE, finish, reconcile, wait_for


def test_every_part_gets_the_verdict_that_inspect_gives_and_the_plc_ejects_just_those(rig, cloth, lineside):
    line = rig()
    plc = line.plc(32, rate=30)
    process = line.run("--parts", "32")
    ledger, _ = finish(process)
    summary, _ = finish(plc)
    assert process.returncode == 0
    rows = line.rows()
    reconcile(ledger, summary, rows)
    assert ledger["uninspected"] == 0 and ledger["rejected"] > 0 and ledger["passed"] > 0
    code, out, _ = lineside("inspect", line.folder / "bundle", cloth / "test", "--out", line.folder / "overlays",
                            "--json")
    assert code == 0
    inspected = {str(Path(row["image"]).relative_to(cloth / "test")): row for row in json.loads(out)}
    assert {row["image"] for row in rows} == set(inspected)
    for row in rows:
        expected = inspected[row["image"]]
        assert (row["verdict"], row["score"]) == (expected["verdict"], expected["score"])
        assert json.loads(row["blobs"]) == [{**blob, "box": list(blob["box"])} for blob in expected["blobs"]]
        if row["verdict"] == "REJECT":
            assert (line.folder / "journal-pictures" / row["picture"]).is_file()
    assert all(row["encoder"] is not None for row in rows)


def test_a_noisy_wire_loses_and_doubles_nothing(rig):
    line = rig()
    plc = line.plc(32, rate=30, noise=0.05, seed=3)
    ledger, _ = finish(line.run("--parts", "32"))
    summary, _ = finish(plc)
    reconcile(ledger, summary, line.rows())
    assert ledger["wire"]["resent"] + summary["resent"] > 0 and summary["crc_errors"] > 0


def test_a_camera_that_runs_dry_makes_uninspected_parts_that_are_ejected(rig, cloth):
    line = rig(camera=cloth / "test" / "good")  # 24 images for 30 parts
    plc = line.plc(30, rate=30)
    process = line.run("--parts", "30")
    ledger, err = finish(process)
    summary, _ = finish(plc)
    reconcile(ledger, summary, line.rows())
    assert process.returncode == 0 and ledger["causes"] == {"no-frame": 6}
    assert "ran dry after 24 images" in err
    assert summary["faults"] == {"1": 1} and "degraded" in summary["line_states_seen"]


def test_images_that_cannot_be_inspected_are_uninspected_and_the_line_goes_on(rig, cloth, tmp_path):
    camera = tmp_path / "camera"
    shutil.copytree(cloth / "test" / "good", camera)
    (camera / "00003.png").write_bytes(b"no image")
    data = (camera / "00007.png").read_bytes()
    (camera / "00007.png").write_bytes(data[: len(data) // 2])
    line = rig(camera=camera)
    plc = line.plc(24, rate=30)
    ledger, err = finish(line.run("--parts", "24"))
    summary, _ = finish(plc)
    rows = line.rows()
    reconcile(ledger, summary, rows)
    assert ledger["causes"] == {"image": 2}
    assert [row["image"] for row in rows if row["verdict"] == "UNINSPECTED"] == ["00003.png", "00007.png"]
    assert "00003.png" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_open_part_and_prints_the_ledger(rig, number):
    line = rig(loop=True, travel=800)
    line.plc(0, rate=30)
    process = line.run()
    wait_for(lambda: (line.folder / "journal.db").exists() and len(line.rows()) > 5)
    process.send_signal(number)
    ledger, err = finish(process)
    assert process.returncode == 0 and "Traceback" not in err
    assert ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"] == len(line.rows())


def test_a_port_that_vanishes_is_retried_counted_and_used_again(rig):
    line = rig(loop=True)
    first = line.plc(0, rate=15)
    process = line.run()
    wait_for(lambda: (line.folder / "journal.db").exists() and len(line.rows()) > 5)
    first.kill()
    first.wait()
    time.sleep(1.0)  # the line needs 0.2 s to notice, and more on a busy machine
    plc = line.plc(20, rate=30)
    summary, _ = finish(plc)
    process.send_signal(signal.SIGTERM)
    ledger, err = finish(process)
    assert process.returncode == 0 and "Traceback" not in err
    assert ledger["link_losses"] >= 1 and ledger["wire"]["port_reopened"] >= 1
    assert "the PLC is not heard" in err
    assert ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"] == len(line.rows())
    assert summary["triggers"] == 20 and summary["failsafe_ids"] == []
    ours = {row["part"]: row["verdict"] for row in line.rows()[-20:]}
    assert sorted(summary["ejected_ids"]) == sorted(part for part, verdict in ours.items() if verdict != "PASS")


def test_uninspected_parts_may_be_let_pass(rig, cloth):
    line = rig(camera=cloth / "test" / "good", belt='uninspected = "pass"')
    plc = line.plc(27, rate=30)
    ledger, _ = finish(line.run("--parts", "27"))
    summary, _ = finish(plc)
    assert ledger["causes"] == {"no-frame": 3}
    assert sorted(summary["ejected_ids"]) == sorted(row["part"] for row in line.rows() if row["verdict"] == "REJECT")


def test_a_second_line_on_the_port_does_not_start_and_the_first_goes_on(rig):
    line = rig(loop=True)
    line.plc(0)
    process = line.run()
    wait_for(lambda: (line.folder / "journal.db").exists() and len(line.rows()) > 3)
    second = line.run("--parts", "1")
    _, err = finish(second)
    assert second.returncode == 2 and "another line or program has open" in err
    before = len(line.rows())
    wait_for(lambda: len(line.rows()) > before + 3)
    process.send_signal(signal.SIGINT)
    ledger, _ = finish(process)
    assert ledger["link_losses"] == 0 and ledger["causes"].get("late") is None


def test_the_line_killed_the_plc_lets_no_uninspected_part_pass(rig):
    line = rig(loop=True, travel=800)
    plc = line.plc(0, rate=20)
    process = line.run()
    wait_for(lambda: (line.folder / "journal.db").exists() and len(line.rows()) > 5)
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: line.events("heartbeat_lost") and len(line.events("trigger"))
             == len(line.events("ejected", "passed")))
    plc.send_signal(signal.SIGTERM)
    summary, _ = finish(plc)
    assert summary["heartbeat_losses"] >= 1 and summary["escaped_ids"] == []


@pytest.mark.parametrize(("old", "new", "words"), [
    ("travel_ms", "travel_mm", "did you mean 'travel_ms'"), ('port = "plc"', "port = 5", "plc.port"),
    ("lead_ms = 100", "lead_ms = 700", "below travel_ms"), ('kind = "folder"', 'kind = "webcam"', "'folder'"),
    ("[belt]", "[belts]", "did you mean 'belt'"), ("[line]", "[line", "not valid TOML"),
    ("loop = false", 'loop = "no"', "camera.loop"), ('kind = "frames"', "", "plc.kind"),
    ('kind = "frames"', 'kind = "frame"', "'frames'"), ("threads = 1", "threads = -1", "line.threads"),
])
def test_a_wrong_line_file_names_the_key_and_starts_nothing(rig, lineside, old, new, words):
    line = rig()
    path = line.folder / "line.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    code, _, err = lineside("run", path)
    assert code == 2 and words in err
    assert not (line.folder / "journal.db").exists() and not list(line.folder.glob("*.belt"))


@pytest.mark.parametrize(("old", "new", "words"), [
    ('port = "plc"', 'port = "nowhere"', "no such port"), ('port = "plc"', 'port = "line.toml"', "no serial port"),
    ('bundle = "bundle"', 'bundle = "nowhere"', "no bundle at"),
])
def test_what_a_line_file_names_and_is_not_there_starts_nothing(rig, old, new, words):
    line = rig()
    line.plc(0)
    path = line.folder / "line.toml"
    path.write_text(path.read_text().replace(old, new))
    process = line.run()
    _, err = finish(process)
    assert process.returncode == 2 and words in err and err.count("lineside:") == 1 and "Traceback" not in err
    assert not (line.folder / "journal.db").exists() and not list(line.folder.glob("*.belt"))


def test_other_reasons_not_to_start(rig, tmp_path):
    line = rig(camera=tmp_path / "empty")
    line.plc(0)
    (tmp_path / "empty").mkdir()
    assert "0 images" in finish(line.run())[1]
    decision = line.folder / "bundle" / "decision.toml"
    decision.write_text(decision.read_text().split("[[threshold]]")[0])
    process = line.run()
    _, err = finish(process)
    assert process.returncode == 2 and "lineside calibrate" in err
    (line.folder / "line.toml").unlink()
    assert "no file" in finish(line.run())[1]


def test_a_journal_that_cannot_be_written_stops_the_start(rig):
    line = rig()
    line.plc(0)
    path = line.folder / "line.toml"
    path.write_text(path.read_text() + '[journal]\npath = "bundle"\n')
    process = line.run()
    _, err = finish(process)
    assert process.returncode == 2 and "cannot write the journal" in err and "Traceback" not in err


def test_the_ledger_is_printed_for_people_too(rig):
    line = rig()
    plc = line.plc(5)
    out = subprocess.run([*LINESIDE, "run", str(line.folder / "line.toml"), "--parts", "5"], capture_output=True,
                         text=True, timeout=60, env={**os.environ, "COLUMNS": "100"}).stdout
    finish(plc)
    assert "triggers" in out and "│ 5 " in out and "journal.db" in out

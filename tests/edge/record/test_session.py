"""`lineside record` and `lineside replay`: a session, with all that went wrong in it, comes out the same once more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import cv2
import numpy as np
import pytest

from edge.line_control.messages import JournalWritten, ProcessEvent, decode, encode
from edge.part.events import Alarm, Challenge, Clear, FaultOver, PartVerdict, RuntimeReady, Stop
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause, Verdict
from edge.plc.tape import DivergedError, RecordingTape, ReplayTape, TapeEndedError
from edge.record.session import TapeWriter, begin_session
from edge.record.session_writer import SessionWriter
from tests.rig import Rig, children, finish, replay, wait_for


def record(line, *options, env=None):
    return line.run("--out", str(line.folder / "session"), *options, command="record", env=env)


def recorded(line, what: str) -> list[dict]:
    lines = (line.folder / "session" / "runtime.jsonl").read_text().splitlines(keepends=True)
    entries = [json.loads(text) for text in lines if text.endswith("\n") and text.strip()]  # it may just be written
    return [entry for entry in entries if entry["what"] == what]


@pytest.fixture(scope="module")
def recorded_once(calibrated_once, cloth, tmp_path_factory):
    """A recorded line of 36 parts over a noisy wire, with two images that cannot be read and a camera that runs dry.

    Returns its folder and ledger. Not to be changed: see `played`.
    """
    folder = tmp_path_factory.mktemp("recorded")
    camera = folder / "camera"
    shutil.copytree(cloth / "test", camera)
    broken = sorted(camera.rglob("*.png"))
    broken[3].write_bytes(b"no image")
    broken[9].write_bytes(broken[9].read_bytes()[:200])
    line = Rig(folder, calibrated_once, camera, travel=2000)  # a long way, for a machine that is busy
    try:
        plc = line.plc(36, 20, noise=0.04, seed=5)
        ledger, _ = finish(record(line, "--parts", "36"))
        summary, _ = finish(plc)
    finally:
        line.close()
    assert ledger["causes"] == {"image": 2, "no-frame": 4} and ledger["wire"]["resent"] + summary["resent"] > 0
    return folder, ledger


@pytest.fixture
def played(recorded_once, tmp_path):
    """A copy of that line's folder that a test may change, and its ledger."""
    folder, ledger = recorded_once
    shutil.copytree(folder, tmp_path / "line")
    return Rig(tmp_path / "line"), ledger


def test_a_session_with_faults_comes_out_the_same_to_the_byte(played):
    line, ledger = played
    code, figures, err = replay(line.folder / "session")
    assert code == 0 and figures["equal"] and figures["complete"], err
    assert figures["parts"] == 36
    assert not any(figures[name] for name in ("verdicts_differ", "scores_differ", "outcomes_differ", "left_out"))
    assert figures["wire"]["equal"] and figures["wire"]["bytes"] > 36 * 24 * 2 and figures["wire"]["runs"] == 1
    assert {name: figures["ledger"][name] for name in ("triggers", "passed", "rejected", "uninspected", "causes")} == {
        name: ledger[name] for name in ("triggers", "passed", "rejected", "uninspected", "causes")}
    rows = {row["part"]: (row["verdict"], row["score"]) for row in line.rows()}
    assert {entry["part"]: (entry["verdict"], entry["score"]) for entry in recorded(line, "ended")} == rows
    frames = [entry for entry in recorded(line, "frame") if "file" in entry]
    assert len(frames) == 30 == len(recorded(line, "expose")) - 6
    first = cv2.imread(str(line.folder / "session" / frames[0]["file"]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(first, cv2.imread(str(line.folder / "camera" / frames[0]["source"]), cv2.IMREAD_UNCHANGED))


def test_another_bundle_shows_the_decisions_that_would_differ(played, cloth, lineside):
    line, _ = played
    other = line.folder / "other"
    shutil.copytree(line.folder / "session" / "bundles" / "1", other)
    assert lineside("calibrate", other, "--good", cloth / "test" / "good", "--false-reject-rate", "0.6")[0] == 0
    text = (other / "decision.toml").read_text()
    assert text != (line.folder / "bundle" / "decision.toml").read_text()
    code, figures, _ = replay(line.folder / "session", "--bundle", other, "--out", line.folder / "sheet.png")
    assert code == 0 and figures["bundle"] == str(other) and figures["wire"] is None
    assert figures["verdicts_differ"] == len(figures["differences"]) == sum(figures["changed"].values()) > 0
    for one in figures["differences"]:
        assert one["verdict"][0] != one["verdict"][1] and one["score"][0] == one["score"][1]
    sheet = cv2.imread(figures["sheet"])
    assert sheet is not None and sheet.shape[1] > 900


def test_what_was_changed_in_a_session_is_found(played):
    line, _ = played
    session = line.folder / "session"
    frame = next(entry for entry in recorded(line, "judged") if entry["file"])
    picture = cv2.imread(str(session / frame["file"]), cv2.IMREAD_UNCHANGED)
    kept = (session / frame["file"]).read_bytes()
    cv2.imwrite(str(session / frame["file"]), 255 - picture)
    code, figures, _ = replay(line.folder / "session")
    assert code == 1 and not figures["equal"] and figures["scores_differ"] == 1
    assert figures["differences"][0]["part"] == frame["part"]
    assert not figures["wire"]["equal"] or figures["outcomes_differ"] == 1
    (session / frame["file"]).unlink()
    code, figures, _ = replay(line.folder / "session")
    assert code == 1 and figures["left_out"] == 1 and figures["wire"]["equal"]
    (session / frame["file"]).write_bytes(kept)
    log = (session / "control.log").read_text().splitlines()
    place = next(i for i, text in enumerate(log) if i > 200 and text.startswith("w"))
    log[place] = log[place][:-1] + ("0" if log[place][-1] != "0" else "1")
    (session / "control.log").write_text("\n".join(log) + "\n")
    code, figures, _ = replay(line.folder / "session")
    assert code == 1 and not figures["wire"]["equal"] and f"line {place + 1} " in figures["wire"]["differs"]


def test_line_control_and_the_runtime_killed_and_the_port_gone_for_a_while(rig):
    line = rig(loop=True, travel=1000)
    first = line.plc(0, rate=25)
    process = record(line)
    wait_for(lambda: len(line.rows()) > 5)
    pids = children(process)
    os.kill(pids["runtime"], signal.SIGSTOP)  # parts without a verdict
    time.sleep(0.3)
    os.kill(pids["control"], signal.SIGKILL)
    os.kill(pids["runtime"], signal.SIGCONT)
    wait_for(lambda: len(line.rows()) > 25)
    os.kill(children(process)["runtime"], signal.SIGKILL)
    wait_for(lambda: len(line.rows()) > 45)
    first.kill()
    first.wait()
    time.sleep(0.5)  # the line needs 0.2 s to notice
    plc = line.plc(10)
    finish(plc)
    process.send_signal(signal.SIGTERM)
    ledger, err = finish(process)
    assert process.returncode == 0 and ledger["link_losses"] and ledger["causes"]["restart"], err
    code, figures, err = replay(line.folder / "session")
    assert code == 0 and figures["outcomes_differ"] == 0, (figures, err)
    assert (figures["wire"]["equal"], figures["wire"]["runs"], figures["wire"]["cut"]) == (True, 2, 1)
    assert not figures["complete"]  # what waited in the runtime that was killed is not in it
    assert figures["ledger"]["triggers"] == ledger["triggers"]


def test_line_control_killed_on_an_empty_belt(rig):
    line = rig(loop=True)
    plc = line.plc(4)
    process = record(line)
    wait_for(lambda: len(line.rows()) == 4)
    finish(plc)
    time.sleep(0.5)
    os.kill(children(process)["control"], signal.SIGKILL)
    finish(line.plc(4))
    process.send_signal(signal.SIGTERM)
    finish(process)
    code, figures, err = replay(line.folder / "session")
    assert code == 0 and figures["wire"]["equal"] and figures["wire"]["runs"] == 2, (figures, err)
    assert figures["ledger"]["triggers"] == 8


def test_a_recording_outlives_a_line_that_cannot_go_on(rig):
    line = rig(loop=True)
    line.plc(0)
    process = record(line)
    wait_for(lambda: len(line.rows()) > 3)
    (line.folder / "line.toml").unlink()
    os.kill(children(process)["runtime"], signal.SIGKILL)
    finish(process)
    assert process.returncode == 2 and list((line.folder / "session" / "frames").iterdir())


def test_a_line_goes_on_without_its_recording(rig):
    line = rig(loop=True)
    line.plc(0)
    process = record(line)
    wait_for(lambda: len(line.rows()) > 3)
    shutil.rmtree(line.folder / "session")
    os.kill(children(process)["runtime"], signal.SIGKILL)
    before = len(line.rows())
    wait_for(lambda: len(line.rows()) > before + 10)
    process.send_signal(signal.SIGTERM)
    ledger, err = finish(process)
    assert process.returncode == 0 and "cannot write the session" in err and "Traceback" not in err
    assert ledger["triggers"] == len(line.rows())


def test_two_cameras_and_an_end_by_a_signal(rig, cloth):
    line = rig(camera=cloth / "test", loop=True)
    path = line.folder / "line.toml"
    text = path.read_text()
    one = text[text.index("[camera]"):text.index("[plc]")]
    path.write_text(text.replace(one, one.replace("[camera]", "[[camera]]") * 2))
    line.plc(0, rate=12)
    process = record(line)
    wait_for(lambda: len(line.rows()) > 15)
    process.send_signal(signal.SIGINT)
    ledger, _ = finish(process)
    assert ledger["triggers"] == len(line.rows())
    code, figures, err = replay(line.folder / "session")
    assert code == 0 and figures["equal"] and figures["parts"] > 10, (figures, err)
    assert "camera" in recorded(line, "judged")[0]


def test_a_session_that_lacks_what_would_be_compared_is_not_equal(played, lineside):
    line, _ = played
    session = line.folder / "session"
    kept = {name: (session / name).read_bytes() for name in ("runtime.jsonl", "control.log", "session.json")}

    def changed(name, data):
        for other, content in kept.items():
            (session / other).write_bytes(content)
        if data is None:
            (session / name).unlink()
        else:
            (session / name).write_bytes(data)
        return lineside("replay", session, "--json")

    lines = kept["runtime.jsonl"].splitlines(keepends=True)
    for name, data in [("control.log", None), ("runtime.jsonl", b""),
                       ("control.log", kept["control.log"].rsplit(b"\n", 2)[0] + b"\n"),
                       ("runtime.jsonl", b"".join(text for text in lines if b'"judged"' not in text)),
                       ("runtime.jsonl", kept["runtime.jsonl"] + b'{"what": "jud')]:
        code, out, _ = changed(name, data)
        assert code == 1 and not json.loads(out)["equal"], name
    for name, data in [("runtime.jsonl", b"".join(text for text in lines if b'"live"' not in text)),
                       ("session.json", b"[]"), ("runtime.jsonl", kept["runtime.jsonl"].replace(b'"PASS"', b'"FOO"'))]:
        code, _, err = changed(name, data)
        assert code == 2 and ("damaged" in err or "cannot replay" in err), name
    code, out, _ = changed("control.log", kept["control.log"].replace(b"\nt", b"\ntx", 1))
    assert code == 1 and "a look at the clock" in json.loads(out)["wire"]["differs"]
    code, _, err = lineside("replay", session, "--out", "sheet.xyz")
    assert code == 2 and "'.xyz'" in err


def test_outcomes_that_were_left_over_from_the_run_before_are_not_compared(rig):
    line = rig(loop=True, travel=1500)
    line.plc(0, rate=20)
    first = line.run()
    wait_for(lambda: len(line.rows()) > 5)
    pids = children(first)
    os.kill(pids["runtime"], signal.SIGSTOP)  # parts that have no outcome
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGSTOP)  # or it starts again what dies
    for pid in (*pids.values(), first.pid):  # as in a power cut
        os.kill(pid, signal.SIGKILL)
    first.wait()
    process = record(line)
    written = line.folder / "session" / "runtime.jsonl"
    wait_for(lambda: written.exists() and len({entry["session"] for entry in recorded(line, "ended")}) == 2)
    process.send_signal(signal.SIGTERM)
    finish(process)
    code, figures, err = replay(line.folder / "session")
    assert code == 0 and figures["equal"] and figures["outcomes_differ"] == 0, (figures, err)


def test_a_session_has_no_password_of_a_stream(tmp_path):
    line = tmp_path / "line.toml"
    line.write_text('source = "rtsp://anna:secret@10.0.0.5/one"\n')
    begin_session(tmp_path / "s", line)
    assert (tmp_path / "s" / "line.toml").read_text() == 'source = "rtsp://10.0.0.5/one"\n'


def test_what_cannot_be_recorded_or_replayed_says_so(rig, lineside, tmp_path):
    line = rig()
    line.plc(0)
    (line.folder / "session").mkdir()
    (line.folder / "session" / "mine.txt").write_text("kept")
    process = record(line)
    _, err = finish(process)
    assert process.returncode == 2 and "exists already" in err and (line.folder / "session" / "mine.txt").exists()
    shutil.rmtree(line.folder / "session")
    path = line.folder / "line.toml"
    path.write_text(path.read_text().replace('bundle = "bundle"', 'bundle = "nowhere"'))
    process = record(line)
    assert finish(process)[1].count("no bundle at") == 1 and process.returncode == 2
    assert not (line.folder / "session").exists()
    code, _, err = lineside("replay", tmp_path)
    assert code == 2 and "lineside record" in err
    begin_session(tmp_path / "old", path)
    (tmp_path / "old" / "runtime.jsonl").touch()
    (tmp_path / "old" / "session.json").write_text('{"format": 99}')
    code, _, err = lineside("replay", tmp_path / "old")
    assert code == 2 and "format 99" in err and "newer version" in err
    (tmp_path / "old" / "session.json").write_text("{}")
    code, _, err = lineside("replay", tmp_path / "old")
    assert code == 2 and "no format" in err and "Record it again" in err


def test_frames_that_the_disk_is_too_slow_for_are_skipped_and_reported_once(tmp_path, rig):
    made = rig()
    begin_session(tmp_path / "s", made.folder / "line.toml")
    troubles = []
    written = SessionWriter(tmp_path / "s", troubles.append, waiting=3 * 400, write_frame=lambda path,
                            frame: time.sleep(0.05))
    for number in range(20):
        written.frame(CameraFrame(number + 1, number + 1, number, 0.0, np.zeros((20, 20, 1), np.uint8)))
    written.close()
    about = json.loads((tmp_path / "s" / "session.json").read_text())
    entries = [json.loads(text) for text in (tmp_path / "s" / "runtime.jsonl").read_text().splitlines()]
    assert about["left_out"] == 20 - about["frames"] > 0 and about["failed"] and len(troubles) == 1
    assert sum("file" in entry
               for entry in entries) == about["frames"] and sum(entry["what"] == "frame" for entry in entries) == 20


def test_all_that_line_control_hears_survives_the_tape():
    heard = [ProcessEvent.CONNECTED, RuntimeReady(), PartVerdict(3, Verdict.REJECT, None, 0.1 + 0.2, 7),
             JournalWritten([1, 2]), Alarm(2, "ä\n"),
             PartVerdict(4, Verdict.UNINSPECTED, Cause.INCOMPLETE, None, 8), FaultOver(2), Clear(),
             Challenge(), Stop(), ProcessEvent.CLOSED]
    again = decode(json.loads(json.dumps(encode(heard))))
    assert again == heard and [type(item) for item in again] == [type(item) for item in heard]


def test_a_tape_gives_what_was_written_down_and_notices_what_is_done_otherwise(tmp_path):
    tape_writer = TapeWriter(tmp_path, pytest.fail)
    tape = RecordingTape(tape_writer.descriptor)

    def gone():
        raise OSError("gone")

    moments = [tape.now(), tape.now()]
    tape.take("read", lambda: b"\x00\xff", bytes.hex, bytes.fromhex)
    with pytest.raises(OSError, match="gone"):
        tape.take("read", gone)
    tape.sent(b"ab")
    tape.finish(1.0)
    tape_writer.close()
    lines = (tmp_path / "control.log").read_text().splitlines()

    def fresh():
        return ReplayTape((number, line) for number, line in enumerate(lines, 1) if line)

    replayed = fresh()
    assert [replayed.now(), replayed.now()] == moments
    assert replayed.take("read", pytest.fail, bytes.hex, bytes.fromhex) == b"\x00\xff"
    with pytest.raises(OSError, match="gone"):
        replayed.take("read", pytest.fail)
    replayed.sent(b"ab")
    assert replayed.bytes == 2
    with pytest.raises(TapeEndedError):
        replayed.now()
    with pytest.raises(DivergedError, match="line 2 "):
        fresh().sent(b"ab")
    with pytest.raises(DivergedError):
        fresh().take("open", pytest.fail)

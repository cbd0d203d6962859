"""GigE Vision cameras over a network: Aravis' fake camera, in a network namespace of its own, and whole lines on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.cameras.gige import namespace

SOAK = Path(__file__).parents[3] / "benchmarks" / "camera_soak.py"
BIG_PACKETS = ("--packet-size", "9000")  # fewer of them, for a machine that is busy

PROBE = """
import json, signal, subprocess, sys, time
from edge.cameras.genicam.driver import GenicamDriver
from lineside import CameraError
from edge.cameras.genicam.section import GenicamSection

subprocess.run("ip link set lo up && ip addr add 127.0.0.2/8 dev lo", shell=True, check=True)
fakes = [subprocess.Popen(["arv-fake-gv-camera-0.8", "-i", f"127.0.0.{n}", "-s", f"GV0{n}"]) for n in (1, 2)]

def driver(serial, **keys):
    features = {"AcquisitionFrameRate": 200.0}
    return GenicamDriver(GenicamSection(kind="genicam", serial=serial, features=features, **keys))

def told(act):
    try:
        act()
    except CameraError as error:
        return str(error)

told_by = {}
try:
    deadline = time.monotonic() + 20
    while len(found := GenicamSection.discover()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    told_by["found"] = sorted((one.kind, one.key, one.vendor, one.address) for one in found)
    told_by["several"] = told(driver("").connect)
    first = driver("127.0.0.1", bandwidth_mb_s=50, packet_size=4000, roi=[0, 0, 128, 64])
    first.connect()
    told_by["held"] = told(driver("GV01").connect)
    told_by["ids"] = first.ids
    told_by["before"] = first.grab(0.2) is not None
    first.trigger()
    frame = first.grab(10)
    told_by["frame"] = [frame.frame_id, frame.image.shape, frame.device_time is not None]
    device = first._connection._device
    told_by["network"] = [device.get_integer_feature_value(name) for name in ("GevSCPSPacketSize", "GevSCPD")]
    first.disconnect()
    second = driver("GV01")
    second.connect()
    told_by["again"] = True
    fakes[0].send_signal(signal.SIGKILL)
    told_by["lost"] = [told(second.trigger), told(lambda: second.grab(0.1))]
    began = time.monotonic()
    second.disconnect()
    told_by["goodbye_s"] = time.monotonic() - began
finally:
    for fake in fakes:
        fake.kill()
print(json.dumps(told_by))
"""


def inside(*words: str) -> subprocess.CompletedProcess:
    """Run Python in a network namespace."""
    root = str(SOAK.parents[1])
    return subprocess.run([*namespace(), sys.executable, *words], capture_output=True, text=True, timeout=200, cwd=root,
                          env={**os.environ, "PYTHONPATH": root, "LINESIDE_CAMERA_SOAK_INSIDE": "1"})


def soak(*options: str) -> dict:
    """What benchmarks/camera_soak.py found."""
    ran = inside(str(SOAK), "--json", *options)
    assert ran.stdout.startswith("{"), ran.stderr
    return json.loads(ran.stdout)


def test_cameras_are_found_opened_held_lost_and_freed():
    ran = inside("-c", PROBE)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["found"] == [["genicam", "GV01", "Aravis", "127.0.0.1"], ["genicam", "GV02", "Aravis", "127.0.0.2"]]
    assert "more than one camera" in told["several"] and "GV01 (Aravis Fake at 127.0.0.1), GV02" in told["several"]
    assert "held by another program" in told["held"]
    assert told["ids"] == [1, 65535] and not told["before"] and told["frame"] == [65401, [64, 128, 1], True]
    assert told["network"] == [4000, 48_000]  # each 80 us a packet, of which 32 us are its own at 1 Gbit/s
    assert told["again"] and "was not triggered" in told["lost"][0] and "does not answer any more" in told["lost"][1]
    assert told["goodbye_s"] < 2  # Aravis takes 5 s
    assert "CRITICAL" not in ran.stderr


def check(result: dict, *causes: str) -> None:
    """All counts agree. A busy machine may trigger late (`camera`); the fake may answer two by one (`unmatched`)."""
    assert all(agrees for name, agrees in result["agree"].items() if name != "unmatched"), json.dumps(result)
    assert set(result["causes"]) <= {*causes, "camera", "unmatched"}, json.dumps(result)
    busy = result["causes"].get("camera", 0) + result["causes"].get("unmatched", 0)
    assert "camera" in causes or busy <= 20, json.dumps(result)


def test_two_cameras_lose_no_part_when_the_frame_ids_wrap():
    result = soak("--parts", "160", "--rate", "10", "--cameras", "2", *BIG_PACKETS)  # the ids wrap after 134 frames
    check(result)
    frames = result["frames"]
    assert 1 <= result["id_wraps"] <= 2 and frames["lost"] == frames["incomplete"] == 0, json.dumps(result)
    seen = frames["frames"] + frames["untriggered"]  # one camera may reject a part before the other has seen it
    assert frames["untriggered"] <= 20, json.dumps(result)
    assert seen >= 2 * (result["passed"] + result["rejected"]) - 1 > 230, json.dumps(result)


def test_a_frame_that_lost_packets_leaves_its_part_uninspected():
    # It also replays the recorded session, with the same result.
    result = soak("--parts", "50", "--rate", "10", "--loss", "20", "--record", *BIG_PACKETS)
    check(result, "incomplete", "late")  # late: the last one, if its frame never came
    assert result["causes"]["incomplete"] > 0


def test_a_camera_that_runs_free_loses_no_frame():
    result = soak("--grab", "--minutes", "0.1")
    assert result["ok"], json.dumps(result)


def test_the_line_continues_after_a_dead_camera_comes_back():
    result = soak("--parts", "75", "--rate", "7", "--kill-every", "2", "--kills", "1", *BIG_PACKETS)
    check(result, "camera", "late")
    assert result["frames"]["disconnects"] == result["frames"]["reconnects"] == 1 and result["causes"]["camera"] > 0
    assert [seconds < 10 for seconds in result["reconnect_s"]] == [True], json.dumps(result)


def test_without_a_network_namespace_there_is_a_loud_warning(monkeypatch):
    namespace()
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: subprocess.CompletedProcess(words, 1))
    text = "NO NETWORK NAMESPACE:"
    with pytest.warns(UserWarning, match=text), pytest.raises(pytest.skip.Exception, match=text):
        namespace()

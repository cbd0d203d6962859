"""`lineside doctor` on this machine, and on simulated ones."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

import edge.tools.doctor
from edge.engines.gpu import find_packages
from edge.tools.doctor import examine


def test_it_says_what_is_there_and_what_is_to_be_done(lineside):
    code, out, err = lineside("doctor", "--json")
    assert code == 0, err
    findings = {finding["what"]: finding for finding in json.loads(out)["findings"]}
    assert {"GPU driver", "CUDA", "TensorRT", "PyCUDA", "TensorRT plans", "OpenVINO", "real-time priority",
            "disk"} <= set(findings)
    assert findings["OpenVINO"]["status"] == "ok" and "OpenVINO" in findings["OpenVINO"]["text"]
    assert all(finding["remedy"] for finding in findings.values() if finding["status"] != "ok")
    if find_spec("tensorrt") is None:
        assert findings["TensorRT"]["status"] == "missing"
        assert "pip install 'lineside[tensorrt]'" in findings["TensorRT"]["remedy"]
    code, out, _ = lineside("doctor")
    assert code == 0 and "OpenVINO: " in out and (find_spec("tensorrt") is not None or "lineside[tensorrt]" in out)


@pytest.fixture
def machine(tmp_path):
    """Files of another machine: a Jetson with two serial converters, in power-saving mode."""
    def put(path: str, text: str = "") -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put("etc/nv_tegra_release", "# R36 (release), REVISION: 4.0, GCID: 37537400\n")
    put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n")
    put("dev/ttyUSB0")
    put("dev/ttyUSB1")
    put("dev/ttyTHS1")
    put("dev/ttyS0")  # a port that no chip is behind
    put("sys/class/tty/ttyS0/type", "0\n")
    put("sys/bus/usb-serial/devices/ttyUSB0/latency_timer", "16\n")
    put("sys/bus/usb-serial/devices/ttyUSB1/latency_timer", "1\n")
    return tmp_path


def test_a_jetson_is_told_what_a_jetson_needs(machine, monkeypatch):
    monkeypatch.setattr("edge.engines.gpu.find_spec", lambda name: None)
    monkeypatch.setattr("edge.tools.doctor.shutil.which", lambda name: None)
    found = {finding.what: finding for finding in examine(machine)}
    assert found["GPU driver"].text.startswith("# R36") and found["GPU driver"].status == "ok"
    assert "python3-libnvinfer" in found["TensorRT"].remedy and "docs/jetson.md" in found["TensorRT"].remedy
    assert found["processor clocks"].remedy == "sudo jetson_clocks" and "schedutil" in found["processor clocks"].text
    assert found["power mode"].status == "improvable" and "nvpmodel" in found["power mode"].remedy
    assert "OpenCV with GStreamer" in found
    assert found["serial port ttyUSB0"].status == "improvable" and "16 ms" in found["serial port ttyUSB0"].text
    assert "latency_timer" in found["serial port ttyUSB0"].remedy
    assert found["serial port ttyUSB1"].status == found["serial port ttyTHS1"].status == "ok"
    assert "serial port ttyS0" not in found


def test_rights_that_are_missing_have_a_remedy(machine, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr("edge.tools.doctor.os.sched_setscheduler", refuse)
    monkeypatch.setattr("edge.tools.doctor.os.geteuid", lambda: 1000)
    monkeypatch.setattr("edge.tools.doctor.resource.getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr("edge.tools.doctor.os.access", lambda *_: False)
    monkeypatch.setattr("edge.tools.doctor.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**8})())
    doctor = edge.tools.doctor
    found = {finding.what: finding for finding in doctor.examine(machine)}
    assert found["real-time priority"].status == "missing" and "rtprio" in found["real-time priority"].remedy
    assert found["memory that may be locked"].text == "8 MB" and "memlock" in found["memory that may be locked"].remedy
    assert "dialout" in found["serial port ttyUSB0"].remedy
    assert found["disk"].status == "improvable"


def test_a_machine_without_serial_ports_says_so(tmp_path):
    found = {finding.what: finding for finding in edge.tools.doctor.examine(tmp_path)}
    assert found["serial ports"].status == "missing" and found["serial ports"].remedy


@pytest.mark.parametrize(("tensorrt", "words"), [("raise ImportError('libnvinfer.so.10: cannot open')",
                                                  "does not load"), ("__version__ = '8.6.1'", "too old"),
                                                 ("__version__ = '10.7.0'", "10.7.0")])
def test_a_tensorrt_that_does_not_fit_is_named(tmp_path, monkeypatch, tensorrt, words):
    (tmp_path / "tensorrt.py").write_text(tensorrt)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edge.engines.gpu.find_spec", lambda name: name)
    found = {finding.what: finding for finding in find_packages(tmp_path)}
    assert words in found["TensorRT"].text and (found["TensorRT"].status == "ok") == (words == "10.7.0")


def test_what_cameras_need_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "gi", None)  # as if it were not installed
    monkeypatch.setattr("cv2.getBuildInformation", lambda: "  Video I/O:\n    GStreamer:                   NO\n")
    found = {finding.what: finding for finding in edge.tools.doctor.examine()}
    assert found["Aravis"].status == "improvable" and "gir1.2-aravis-0.8" in found["Aravis"].remedy
    assert found["OpenCV with GStreamer"].status == "improvable"
    assert "python3-opencv" in found["OpenCV with GStreamer"].remedy
    binding = ModuleType("gi")
    monkeypatch.setattr(binding, "require_version", lambda name, version: None, raising=False)
    monkeypatch.setitem(sys.modules, "gi", binding)
    monkeypatch.setattr("cv2.getBuildInformation", lambda: "  Video I/O:\n    GStreamer:                   YES "
                        "(1.20.3)\n")
    found = {finding.what: finding for finding in edge.tools.doctor.examine()}
    assert found["Aravis"].status == found["OpenCV with GStreamer"].status == "ok"
    assert "1.20.3" in found["OpenCV with GStreamer"].text

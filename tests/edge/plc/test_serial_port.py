"""What the kinds of PLC link report to `lineside doctor` about a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.plc import kinds
from edge.plc.modbus import section as modbus


@pytest.fixture
def machine(tmp_path) -> Path:
    """A machine with an FTDI converter, a built-in port, and a ttyS0 without hardware."""
    (tmp_path / "dev").mkdir()
    for name in ("ttyUSB0", "ttyS0", "ttyS1"):
        (tmp_path / "dev" / name).touch()
        (tmp_path / "sys/class/tty" / name).mkdir(parents=True)
        (tmp_path / "sys/class/tty" / name / "type").write_text("0\n" if name == "ttyS0" else "4\n")
    timer = tmp_path / "sys/bus/usb-serial/devices/ttyUSB0/latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("16\n")
    return tmp_path


def test_each_serial_port_is_reported_once_for_all_kinds(machine):
    found = {finding.what: finding for finding in kinds.doctor(machine)}
    whats = [finding.what for finding in kinds.doctor(machine)]
    assert whats == ["serial port ttyUSB0", "serial port ttyS1", "pymodbus"]
    assert found["serial port ttyUSB0"].status == "improvable" and "16 ms" in found["serial port ttyUSB0"].text
    assert found["serial port ttyS1"].status == "ok"


def test_a_port_that_this_user_may_not_open_and_a_machine_without_one_say_what_to_do(machine, monkeypatch, tmp_path):
    monkeypatch.setattr("edge.plc.serial_port.os.access", lambda *_: False)
    port = kinds.doctor(machine)[0]
    assert port.status == "missing" and "dialout" in port.remedy
    nothing = kinds.doctor(tmp_path / "empty")[0]
    assert (nothing.what, nothing.status) == ("serial ports", "missing")


def test_modbus_reports_whether_pymodbus_is_installed(machine, monkeypatch):
    found = {finding.what: finding for finding in kinds.doctor(machine)}
    assert found["pymodbus"].status == "ok" and found["pymodbus"].text[0].isdigit()
    monkeypatch.setattr(modbus, "find_spec", lambda _: None)
    lacking = {finding.what: finding for finding in kinds.doctor(machine)}["pymodbus"]
    assert lacking.status == "improvable" and "pip install 'lineside[modbus]'" in lacking.remedy

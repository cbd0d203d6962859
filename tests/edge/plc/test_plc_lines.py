"""PLC link `lines`: the real serial port code on a pseudo terminal that has modem lines, with a PLC of four wires."""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import struct
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge.part.events import (
    Confirm,
    LinkBack,
    LinkLost,
    OrderFailed,
    Report,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.part.verdict import Verdict
from edge.plc.lines.link import LinesLink
from edge.plc.link import LineStatus
from tests.rig import finish, replay, rig, wait_for

__all__ = ["rig"]
SIZE = 16 + 4096 * 16


class Wires:
    """The PLC's side: it sets CTS and DSR, and sees what RTS and DTR did."""

    def __init__(self, path: Path) -> None:
        path.touch()
        os.truncate(path, SIZE)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)

    def set(self, bit: int, high: bool) -> None:
        (inputs,) = struct.unpack_from("i", self._map, 4)
        struct.pack_into("i", self._map, 4, inputs | bit if high else inputs & ~bit)

    def outputs(self) -> list[tuple[float, bool, bool]]:
        """(s, RTS, DTR) after each change."""
        (changes,) = struct.unpack_from("I", self._map, 8)
        found = [struct.unpack_from("di", self._map, 16 + 16 * i) for i in range(min(changes, 4096))]
        return [(at, bool(bits & termios.TIOCM_RTS), bool(bits & termios.TIOCM_DTR)) for at, bits in found]

    def pulses(self, high: bool) -> list[tuple[float, float]]:
        """(begin, end) of each firing of RTS that began and ended while DTR's owner held the port."""
        edges, pulses, since = self.outputs(), [], None
        for (_, before, _), (at, rts, _) in itertools.pairwise(edges):
            if rts != before and rts == high:
                since = at
            elif rts != before and since is not None:
                pulses.append((since, at))
                since = None
        return pulses


@pytest.fixture
def wires(tmp_path):
    near, far = os.openpty()
    (tmp_path / "modem").mkdir()
    (tmp_path / "plc").symlink_to(os.ttyname(far))
    made = Wires(tmp_path / "modem" / os.ttyname(far).rsplit("/", 1)[1])
    yield made
    os.close(near)
    os.close(far)


def preloaded(tmp_path, modem_lines) -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": str(modem_lines), "MODEM_DIR": str(tmp_path / "modem")}


@pytest.fixture
def fake(monkeypatch):
    """A link without a port: its inputs are set, its outputs are noted."""
    lines: dict[str, Any] = {"inputs": 0, "noted": []}

    class Port:
        def __init__(self, *_, **__):
            lines["noted"].append("made")

        def __setattr__(self, name, value):
            lines["noted"].append((name, value, time.monotonic()))

        def open(self):
            lines["noted"].append("open")

        def fileno(self):
            if lines.get("gone"):
                raise OSError(5, "gone")
            return 0

        def close(self):
            lines["noted"].append("close")

    monkeypatch.setattr("edge.plc.lines.link.serial.Serial", Port)
    monkeypatch.setattr("edge.plc.lines.link.fcntl.ioctl", lambda *_: struct.pack("i", lines["inputs"]))
    return lines


def read(link, seconds: float = 0.0) -> list:
    wake, held = os.pipe()
    events = link.read_events(seconds, wake)
    os.close(wake)
    os.close(held)
    return events


def rts(fake) -> list[bool]:
    return [entry[1] for entry in fake["noted"] if entry[0] == "rts"]


def test_before_the_port_is_open_the_outputs_are_told_and_ready_stays_low_until_the_line_is(fake):
    link = LinesLink("port")
    link.open()
    before = fake["noted"][: fake["noted"].index("open")]
    assert [entry[:2] for entry in before if entry[0] in ("rts", "dtr")] == [("rts", True), ("dtr", False)]
    for status in (LineStatus.STARTING, LineStatus.READY, LineStatus.READY, LineStatus.DEGRADED, LineStatus.FAULT,
                   LineStatus.OFFLINE):
        link.heartbeat(status)
    assert [entry[1] for entry in fake["noted"] if entry[0] == "dtr"][1:] == [False, True, False, True, False, False]
    steady = LinesLink("port", ready="level")
    steady.open()
    fake["noted"].clear()
    steady.heartbeat(LineStatus.READY)
    steady.heartbeat(LineStatus.READY)
    assert [entry[1] for entry in fake["noted"]] == [True, True]


@pytest.mark.parametrize(("trigger", "level"), [("rising", termios.TIOCM_CTS), ("falling", 0)])
def test_an_edge_that_stays_is_a_part_and_one_that_does_not_is_a_bounce(fake, trigger, level):
    fake["inputs"] = termios.TIOCM_CTS - level
    link = LinesLink("port", trigger=trigger, debounce_ms=20)
    link.open()
    link.room = 5
    assert read(link) == [LinkBack()]
    fake["inputs"] = level
    assert read(link) == []
    fake["inputs"] = termios.TIOCM_CTS - level
    assert read(link, 0.03) == [] and link.counters()["bounces"] == 1
    fake["inputs"] = level
    (event,) = read(link, 1.0)
    assert isinstance(event, Trigger) and event.part == 1 and 0.02 <= event.age < 0.5
    fake["inputs"] = termios.TIOCM_CTS - level
    assert read(link, 0.05) == []
    fake["inputs"], link.room = level, 0
    assert read(link, 1.0) == [TriggerRefused(2)]


def test_a_pass_counts_as_told_and_a_confirmation_belongs_to_the_pulse_before_it(fake):
    link = LinesLink("port", reject="high")
    link.open()
    assert read(link) == [LinkBack()]
    link.report(Report(1, Verdict.PASS, None, 0.1, False))
    link.report(Report(2, Verdict.REJECT, None, 0.9, True))
    assert read(link) == [VerdictDelivered(1)]
    fake["inputs"] = termios.TIOCM_DSR
    assert read(link, 0.1) == [Confirm(0)]  # nothing was fired
    fake["inputs"] = 0
    link.pulse(7, time.monotonic() + 0.01, 5)
    assert read(link, 0.05) == []
    fake["inputs"] = termios.TIOCM_DSR
    assert read(link, 0.1) == [Confirm(7)] and rts(fake) == [False, True, False] and link.idle


def test_enable_is_the_plcs_own_state(fake):
    link = LinesLink("port", dsr="enable", dsr_active="low")
    link.open()
    link.room = 1
    assert read(link) == [LinkBack()]
    fake["inputs"] = termios.TIOCM_DSR
    (lost,) = read(link)
    assert isinstance(lost, LinkLost) and "is not ready" in lost.reason
    fake["inputs"] |= termios.TIOCM_CTS
    assert read(link, 0.1) == [TriggerRefused(1)]


def test_two_parts_in_one_window_are_two_pulses_where_there_is_room_and_one_where_not(fake):
    link = LinesLink("port", reject="high", gap_ms=5)
    link.open()
    read(link)
    now = time.monotonic() + 0.02
    link.pulse(1, now, 20)
    link.pulse(2, now + 0.018, 20)  # the first one is shortened
    link.pulse(3, now + 0.022, 20)  # falls into the second
    read(link, 0.12)
    assert rts(fake) == [False, True, False, True, False]
    assert link.counters()["pulses"] == 2 and link.counters()["merged"] == 1
    times = [entry[2] for entry in fake["noted"] if entry[0] == "rts"][1:]
    assert times == sorted(times) and times[0] >= now and times[3] >= now + 0.041


def test_what_comes_too_late_or_without_a_port_fails_and_the_port_is_opened_again(fake, monkeypatch):
    monkeypatch.setattr("edge.plc.lines.link.REOPEN_AFTER", 0.01)
    link = LinesLink("port")
    link.open()
    read(link)
    link.pulse(1, time.monotonic() - 1, 5)
    assert read(link) == [OrderFailed(1, "too late")]
    link.pulse(2, time.monotonic() + 5, 5)
    fake["gone"] = True
    events = read(link)
    assert isinstance(events[0], LinkLost) and events[1] == OrderFailed(2, "the port is gone")
    link.pulse(3, time.monotonic() + 5, 5)
    assert OrderFailed(3, "the port is gone") in read(link)
    fake["gone"] = False
    time.sleep(0.02)
    assert read(link, 0.2) == [LinkBack()] and link.counters()["port_reopened"] >= 1


class FourWires(threading.Thread):
    """A PLC: triggers while DTR blinks, ejects what RTS says, and confirms it."""

    def __init__(self, wires: Wires, parts: int, travel: float, rate: float) -> None:
        super().__init__(daemon=True)
        self.wires, self.parts, self.travel, self.pitch = wires, parts, travel, 1 / rate
        self.triggered: list[float] = []

    def run(self) -> None:
        while len(self.triggered) < self.parts:
            edges = self.wires.outputs()
            changes = [dtr for at, _, dtr in edges if at > time.monotonic() - 0.3]
            if len(changes) >= 4 and edges[-1][0] > time.monotonic() - 0.15:  # it blinks
                self.triggered.append(time.monotonic())
                self.wires.set(termios.TIOCM_CTS, True)
                time.sleep(self.pitch / 2)
                self.wires.set(termios.TIOCM_CTS, False)
            time.sleep(self.pitch / 2)


def test_a_line_on_four_wires_fires_for_just_the_parts_that_are_not_good(rig, modem_lines, wires, tmp_path):
    line = rig(loop=True)
    path = line.folder / "line.toml"
    text = path.read_text().replace('kind = "frames"', 'kind = "lines"\ndsr = "none"')
    path.write_text(text.replace("[belt]", "[belt]\npulse_ms = 10"))
    process = line.run("--out", str(line.folder / "session"), command="record", env=preloaded(tmp_path, modem_lines))
    wait_for(lambda: len(wires.outputs()) > 0)
    assert wires.outputs()[0][1:] == (True, True)  # the driver raises both
    plc = FourWires(wires, 25, 0.6, 8)
    plc.start()
    plc.join(30)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    ledger, told = finish(process)
    rows = line.rows()
    assert process.returncode == 0 and ledger["triggers"] == len(rows) >= 15, told
    # refused: while it does not blink yet
    assert ledger["triggers"] + ledger["refused_triggers"] == len(plc.triggered) == 25
    bad = [row["part"] for row in rows if row["verdict"] != "PASS"]
    fired = wires.pulses(high=False)[:len(bad)]  # the port's close is one more
    assert 0 < len(bad) < len(rows) and ledger["wire"]["pulses"] + ledger["wire"]["merged"] == len(bad) == len(fired)
    for part, (begin, _) in zip(bad, fired, strict=True):
        assert abs(begin - plc.triggered[part - 1] - 0.6) < 0.2, "another part's pulse"
    assert wires.outputs()[-1][1:] == (False, False)  # closed: not ready, and everything is ejected
    ready = next(i for i, (_, _, dtr) in enumerate(wires.outputs()) if not dtr)
    assert any(dtr for _, _, dtr in wires.outputs()[ready:])
    code, again, text = replay(line.folder / "session")
    assert code == 0 and again["equal"] and again["parts"] == len(rows) and again["wire"]["bytes"] > 100, (again, text)


def test_a_port_without_modem_lines_is_refused(rig):
    line = rig()
    line.plc(0)
    path = line.folder / "line.toml"
    path.write_text(path.read_text().replace('kind = "frames"', 'kind = "lines"'))
    process = line.run()
    _, err = finish(process)
    assert process.returncode == 2 and "a free serial port with modem lines" in err and "Traceback" not in err
    path.write_text(path.read_text().replace("[belt]", "[belt]\ntravel_counts = 100"))
    process = line.run()
    assert "no encoder" in finish(process)[1] and process.returncode == 2



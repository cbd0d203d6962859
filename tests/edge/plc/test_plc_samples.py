"""The sample PLC programs of docs/plc, run scan by scan against the real links."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import pytest
from pymodbus.framer import FramerRTU

from edge.part.events import Clear, Confirm, LinkBack, OrderFailed, Report, Trigger, VerdictDelivered
from edge.part.verdict import Cause, Verdict
from edge.plc.frames.link import FramesLink
from edge.plc.link import LineStatus
from edge.plc.modbus.link import ModbusLink
from edge.plc.wire import Message
from tests.mocks.structured_text import load

FOLDER = Path(__file__).parents[3] / "docs" / "plc"
SCAN = 0.004  # s
TRAVEL, WIDTH = 600, 30  # ms


class Plc(threading.Thread, ABC):
    """A PLC that scans a sample program.

    Its clock wraps two seconds after its start; `fired` has (begin, end, part whose moment it is).
    """

    def __init__(self, program: str, port: int) -> None:
        super().__init__(daemon=True)
        units = load(FOLDER / f"{program}.st")
        self.block = units[f"LINESIDE_{program.upper()}"]()
        self.port = port
        self.inputs = {"camera": 0, "leaving": 0, "reset": 0}
        self.came: dict[int, float] = {}  # part -> s
        self.fired: list[list[float]] = []
        self.garbage = b""  # to be read with what comes next
        self.drop = 0  # how many answers to writes, or frames of the kind below, get lost
        self.drop_kind = 4  # ACK
        self._began, self._end = time.monotonic(), threading.Event()
        self._pulse = threading.Lock()

    def run(self) -> None:
        while not self._end.wait(SCAN):
            now = time.monotonic()
            before, part = self.block.ejector, self.block.part
            self.scan(int(1000 * (now - self._began)) + 2**32 - 2000 & 0xFFFFFFFF)
            if self.block.part != part:
                self.came[self.block.part] = now
            if self.block.ejector and not before:
                self.fired.append([now, now])
            elif self.block.ejector:
                self.fired[-1][1] = now

    @abstractmethod
    def scan(self, clock: int) -> None:
        """One scan at this clock, ms."""

    def pulse(self, name: str) -> None:
        """TRUE for some scans, then FALSE."""
        with self._pulse:
            for value in (1, 0):
                self.inputs[name] = value
                time.sleep(5 * SCAN)

    def ejected(self) -> list[int]:
        """Whose moment before the ejector each pulse was."""
        return [min(self.came, key=lambda part: abs(self.came[part] + TRAVEL / 1000 - begin))
                for begin, _ in self.fired]

    def stop(self) -> None:
        self._end.set()
        self.join(5)


class FramesPlc(Plc):
    def __init__(self, port: int) -> None:
        super().__init__("frames", port)
        self.given = {"input": [0] * 256, "output": [0] * 256, "session": 0, "travel": TRAVEL, "width": WIDTH}

    def scan(self, clock: int) -> None:
        data = os.read(self.port, 200) if select.select([self.port], [], [], 0)[0] else b""
        if data:
            data, self.garbage = self.garbage + data, b""
        self.given["input"][: len(data)] = data
        self.block(clock=clock, received=len(data), **self.inputs, **self.given)
        self.given.pop("session", None)
        said = bytes(self.given["output"][: self.block.to_send])
        frames = [said[at:at + 24] for at in range(0, len(said), 24)]
        for frame in frames:
            if frame[2] == self.drop_kind and self.drop > 0:
                self.drop -= 1
            else:
                os.write(self.port, frame)


class ModbusPlc(Plc):
    """With the Modbus slave that a PLC has: functions 3 and 16 on its registers, between two scans."""

    def __init__(self, port: int) -> None:
        super().__init__("modbus", port)
        self.given = {"says": [0] * 93, "told": [0] * 15, "session": 0, "travel": TRAVEL, "width": WIDTH}
        self.buffer = b""

    def scan(self, clock: int) -> None:
        if select.select([self.port], [], [], 0)[0]:
            self.buffer += os.read(self.port, 300)
        if len(self.buffer) >= 8 and len(self.buffer) >= (length := 9 + self.buffer[6] if self.buffer[1] == 16 else 8):
            request, self.buffer = self.buffer[:length], self.buffer[length:]
            self.answer(request)
        self.block(clock=clock, **self.inputs, **self.given)
        self.given.pop("session", None)

    def answer(self, request: bytes) -> None:
        crc = lambda data: FramerRTU.compute_CRC(data).to_bytes(2, "big")  # noqa: E731
        assert request[0] == 1 and request[-2:] == crc(request[:-2])
        start, count = int.from_bytes(request[2:4], "big"), int.from_bytes(request[4:6], "big")
        registers = {**dict(enumerate(self.given["says"])),
                     **{100 + at: value for at, value in enumerate(self.given["told"])}}
        if request[1] == 3:
            values = (registers[at] for at in range(start, start + count))
            body = bytes([1, 3, 2 * count]) + b"".join(value.to_bytes(2, "big") for value in values)
        else:
            for at in range(count):
                self.given["told"][start - 100 + at] = int.from_bytes(request[7 + 2 * at:9 + 2 * at], "big")
            body = request[:6]
        if request[1] == 16 and self.drop > 0:
            self.drop -= 1
        else:
            os.write(self.port, body + crc(body))


class Line(threading.Thread):
    """What line control does with a link: each part gets the outcome that ``outcome`` says, or none."""

    def __init__(self, link: FramesLink | ModbusLink, outcome: Callable[[int], Verdict | None]) -> None:
        super().__init__(daemon=True)
        self.link, self.outcome = link, outcome
        self.events: list[object] = []
        self.alive, self._end = True, threading.Event()

    def run(self) -> None:
        wake, held = os.pipe()
        beat = 0.0
        while not self._end.is_set():
            if self.alive and time.monotonic() >= beat:
                self.link.heartbeat(LineStatus.READY)
                beat = time.monotonic() + 0.05
            self.link.room = 100
            for event in self.link.read_events(0.02, wake) if self.alive else []:
                self.events.append(event)
                if isinstance(event, Trigger) and (verdict := self.outcome(event.part)) is not None:
                    cause = Cause.LATE if verdict is Verdict.UNINSPECTED else None
                    self.link.report(Report(event.part, verdict, cause, None if cause else 0.5, True))
                    if verdict is not Verdict.PASS:
                        self.link.pulse(event.part, time.monotonic() - event.age + TRAVEL / 1000, WIDTH)
            if not self.alive:
                time.sleep(0.02)
        os.close(wake)
        os.close(held)

    def parts(self, kind: type) -> list[int]:
        return [event.part for event in self.events if isinstance(event, kind)]  # type: ignore[attr-defined]

    def stop(self) -> None:
        self._end.set()
        self.join(5)
        self.link.close()


def wait_for(condition: Callable[..., object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


OUTCOMES = [Verdict.PASS, Verdict.REJECT, Verdict.PASS, None, Verdict.PASS, Verdict.UNINSPECTED, Verdict.PASS]


def outcome(part: int) -> Verdict | None:
    return OUTCOMES[part % len(OUTCOMES)]


@pytest.fixture(params=["frames", "modbus"])
def both(request):
    near, far = os.openpty()
    tty.setraw(far)
    plc = FramesPlc(near) if request.param == "frames" else ModbusPlc(near)
    plc.start()
    port = os.ttyname(far)
    link = FramesLink(port, 115200) if request.param == "frames" else ModbusLink(port, timeout_ms=150)
    link.open()
    line = Line(link, outcome)
    line.start()
    wait_for(lambda: plc.block.alive)
    yield plc, line
    line.stop()
    plc.stop()
    os.close(near)
    os.close(far)


@pytest.mark.parametrize("name", ["frames", "lines", "modbus"])
def test_a_sample_is_structured_text_whose_types_fit(name):
    assert f"LINESIDE_{name.upper()}" in load(FOLDER / f"{name}.st")


def test_the_frame_of_the_page_is_the_one_of_the_sample():
    units = load(FOLDER / "frames.st")
    assert units["LS_CRC"](0, 9, list(b"123456789")) == 0xCBF43926
    made = [0] * 256
    assert units["LS_PACK"](0, 2, 1, 0xBEEF, 1, 17, 88123, 40100, made) == 24
    page = (FOLDER.parent / "plc-frames.md").read_text()
    assert bytes(made[:24]).hex(" ").upper() in page
    assert bytes(made[:24]) == Message(2, 1, 0xBEEF, 1, 17, 88123, 40100).encode()


def test_just_the_right_parts_are_ejected_each_at_its_moment(both):
    plc, line = both
    for _ in range(18):
        plc.pulse("camera")
        time.sleep(0.11)
    wait_for(lambda: 18 in plc.came and time.monotonic() > plc.came[18] + TRAVEL / 1000 + 0.2)
    assert line.parts(Trigger) == list(range(1, 19)) and line.parts(OrderFailed) == []
    assert plc.ejected() == [part for part in range(1, 19) if outcome(part) is not Verdict.PASS]
    assert set(line.parts(VerdictDelivered)) >= {part for part in range(1, 19) if outcome(part) is Verdict.PASS}
    assert all(abs(begin - plc.came[part] - TRAVEL / 1000) < 0.08
               for part, (begin, _) in zip(plc.ejected(), plc.fired, strict=True))
    assert all(0 < end - begin < WIDTH / 1000 + 0.08 for begin, end in plc.fired)


def test_what_leaves_is_told_and_a_fault_is_shown_until_it_is_cleared(both):
    plc, line = both
    plc.pulse("camera")  # REJECT
    wait_for(lambda: plc.fired)
    plc.pulse("leaving")
    wait_for(lambda: line.parts(Confirm) == [1])
    line.link.fault(3)
    wait_for(lambda: plc.block.fault == 3)
    line.link.fault(0)
    wait_for(lambda: plc.block.fault == 0)
    plc.pulse("reset")
    wait_for(lambda: any(isinstance(event, Clear) for event in line.events))


def test_what_the_wire_loses_or_adds_changes_nothing(both):
    plc, line = both
    for number in range(8):
        plc.drop, plc.drop_kind = 1, (2, 4)[number % 2]  # a TRIGGER, the ACK of a VERDICT or a REJECT
        plc.garbage = b"" if isinstance(plc, ModbusPlc) else b"LS\x81\x00LSL" * (number % 3)
        plc.pulse("camera")
        wait_for(lambda part=number + 1: part in line.parts(Trigger))
        if outcome(number + 1) is Verdict.PASS:
            wait_for(lambda part=number + 1: part in line.parts(VerdictDelivered))
        time.sleep(0.1)  # the moment of each ejection tells its part
    wait_for(lambda: time.monotonic() > plc.came[8] + TRAVEL / 1000 + 0.2)
    assert line.parts(Trigger) == list(range(1, 9))
    assert plc.ejected() == [part for part in range(1, 9) if outcome(part) is not Verdict.PASS]
    assert sorted(line.parts(VerdictDelivered)) == sorted(set(line.parts(VerdictDelivered)))
    assert line.parts(OrderFailed) == []
    counts = line.link.counters()
    assert counts["timeouts"] >= 4 if isinstance(plc, ModbusPlc) else counts["resent"] >= 3


def test_a_line_that_dies_lets_nothing_uninspected_pass_and_a_new_one_goes_on(both):
    plc, line = both
    line.outcome = lambda part: Verdict.PASS if part == 1 else None
    plc.pulse("camera")
    wait_for(lambda: line.parts(VerdictDelivered) == [1])
    plc.pulse("camera")
    wait_for(lambda: line.parts(Trigger) == [1, 2])
    line.alive = False
    start = time.monotonic()
    wait_for(lambda: not plc.block.alive)
    assert time.monotonic() - start < 1.0
    plc.pulse("camera")
    wait_for(lambda: time.monotonic() > plc.came[3] + TRAVEL / 1000 + 0.2)
    assert plc.ejected() == [2, 3]
    line.alive = True
    wait_for(lambda: plc.block.alive)
    plc.pulse("camera")
    wait_for(lambda: 4 in line.parts(Trigger))
    assert 3 not in line.parts(Trigger) and sum(isinstance(event, LinkBack) for event in line.events) >= 1


def test_a_plc_that_starts_again_takes_another_session():
    units = load(FOLDER / "modbus.st")
    says, told = [7] * 93, [7] * 15
    for session in (0xFFFE, 0xFFFF):
        block = units["LINESIDE_MODBUS"]()
        block(clock=5, camera=0, leaving=0, reset=0, says=says, told=told, session=session)
        assert block.session == (session + 1) & 0xFFFF == says[1]
        assert says[0] == 1 and not any(told) and not any(says[7:])
    block(clock=6, camera=0, leaving=0, reset=0, says=says, told=told)
    assert says[1] == 0


class FourWires:
    """The sample for four wires, scanned on a clock of its own."""

    def __init__(self) -> None:
        self.block = load(FOLDER / "lines.st")["LINESIDE_LINES"]()
        self.clock, self.rts, self.dtr, self.dead = 2**32 - 500, 1, 0, False
        self.ejected: list[int] = []

    def run(self, ms: int, **inputs: int) -> None:
        for _ in range(0, ms, 5):
            self.clock += 5
            self.dtr = int(self.clock // 50 % 2) if not self.dead else self.dtr
            given = {"camera": 0, "leaving": 0, "rts": self.rts, "dtr": self.dtr, **inputs}
            self.block(clock=self.clock & 0xFFFFFFFF, travel=TRAVEL, width=WIDTH, **given)
            if self.block.ejector:
                self.ejected.append(self.clock)


def test_four_wires_carry_a_trigger_a_pulse_and_a_confirmation():
    plc = FourWires()
    plc.run(100)
    assert not plc.block.alive and plc.block.ejector  # two changes may be a port that is opened
    plc.run(200)
    assert plc.block.alive and not plc.block.ejector
    plc.ejected.clear()
    plc.run(30, camera=1)
    assert plc.block.cts == 1
    plc.run(30)
    assert plc.block.cts == 0 and not plc.ejected
    plc.run(20, rts=0)
    plc.run(30, leaving=1)
    assert len(plc.ejected) == 4 and plc.block.dsr == 1


def test_on_four_wires_what_a_dead_line_did_not_see_is_ejected():
    plc = FourWires()
    plc.run(300)
    plc.dead = True
    plc.run(250)
    assert not plc.block.alive and plc.block.ejector
    plc.run(20, camera=1)
    came = plc.clock - 20
    assert plc.block.cts == 0 and plc.block.refused == 1
    plc.dead = False
    plc.run(300)
    assert plc.block.alive and not plc.block.ejector
    plc.ejected.clear()
    plc.run(600)
    assert plc.ejected and abs(plc.ejected[0] - came - TRAVEL) <= 10 and len(plc.ejected) == WIDTH // 5

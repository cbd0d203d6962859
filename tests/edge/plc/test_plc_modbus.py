"""PLC link `modbus`: pymodbus against a PLC on libmodbus, over a cable paced at 115200 baud."""

from __future__ import annotations

import gc
import os
import random
import sys
import time

import pytest

from edge.base.errors import InputError, LinkError
from edge.line_file import read_line_file
from edge.part.events import (
    BeltStopped,
    Clear,
    Confirm,
    Encoder,
    LinkBack,
    LinkLost,
    OrderFailed,
    Report,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.part.verdict import Cause, Verdict
from edge.plc.link import LineStatus
from edge.plc.modbus.link import ModbusLink
from tests.edge.plc.modbus_plc import Plc, plc
from tests.rig import finish, replay, rig, wait_for

__all__ = ["plc", "rig"]


class Line:
    """What line control does with a link."""

    def __init__(self, plc: Plc, **options) -> None:
        self.link = ModbusLink(str(plc.port), **options)
        self.link.open()
        self.link.room = 100
        self.wake, self._held = os.pipe()
        self.beat = 0.0
        self.status = LineStatus.READY

    def until(self, condition, seconds: float = 10.0) -> list:
        """Events until one makes the condition true (None: until the time is over)."""
        events, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            if time.monotonic() >= self.beat:
                self.link.heartbeat(self.status)
                self.beat = time.monotonic() + 0.05
            events += self.link.read_events(max(0.0, min(self.beat, end) - time.monotonic()), self.wake)
            if condition is not None and condition(events):
                return events
        assert condition is None, f"waited in vain, got {events}"
        return events

    def end(self) -> None:
        self.link.close()
        os.close(self.wake)
        os.close(self._held)


@pytest.fixture
def line(plc):
    made = Line(plc)
    assert made.until(lambda events: LinkBack() in events)
    yield made
    made.end()


def kinds(events, kind) -> list:
    return [event for event in events if isinstance(event, kind)]


def verdict(part: int, kind: Verdict = Verdict.PASS, cause: Cause | None = None) -> Report:
    return Report(part, kind, cause, None if kind is Verdict.UNINSPECTED else 0.5, True)


def test_a_part_from_its_trigger_to_its_confirmation(plc, line):
    plc.tell("encoder 4294967290", "trigger 4294967295")
    events = line.until(lambda events: kinds(events, Trigger))
    (trigger,) = kinds(events, Trigger)
    assert trigger.part == 4294967295 and trigger.encoder == 4294967290 and 0 <= trigger.age < 1.0
    line.link.report(verdict(4294967295, Verdict.REJECT))
    line.link.pulse(4294967295, time.monotonic() - trigger.age + 5.0, 20)
    line.link.fault(4)
    events = line.until(lambda events: line.link.idle)
    assert kinds(events, VerdictDelivered) == [VerdictDelivered(4294967295)] and not kinds(events, OrderFailed)
    assert kinds(events, Encoder)[-1].count == 4294967290
    reject, told, fault = plc.log
    assert reject[:4] == ("reject", 4294967295, 0, 20)
    assert told[:4] == ("verdict", 4294967295, 1, 5000) and fault[:3] == ("fault", 0, 4)
    # ms of the PLC's clock, over its wrap
    assert abs((reject[4] - plc.triggered()[4294967295] - 5000 + 2**31) % 2**32 - 2**31) <= 2
    plc.tell("confirm 4294967295", "clear", "belt 0")
    events = line.until(lambda events: kinds(events, Confirm) and kinds(events, Clear) and kinds(events, BeltStopped))
    assert kinds(events, Confirm) == [Confirm(4294967295)]
    line.until(lambda _: plc.status() == "state 2 session 7 taken 1 confirms 1")
    assert set(line.link.counters()) == {"timeouts", "out_of_step", "exceptions", "overwritten", "port_reopened",
                                         "rewritten"}


def test_verdicts_and_orders_by_count_say_what_the_map_says(plc, line):
    line.link.report(verdict(1, Verdict.UNINSPECTED, Cause.LATE))
    line.link.report(Report(2, Verdict.UNINSPECTED, Cause.ENGINE, None, False))
    line.link.pulse(3, 0.0, 15, count=-5)
    line.until(lambda _: line.link.idle)
    wait_for(lambda: len(plc.log) == 3)
    assert [entry[:5] for entry in plc.log] == [("reject", 3, 1, 15, 2**32 - 5), ("verdict", 1, 2, 1, 0),
                                                ("verdict", 2, 3, 5, 0)]


@pytest.mark.parametrize("timing", ["line", "plc"])
def test_who_times_the_ejector(plc, timing):
    line = Line(plc, timing=timing)
    plc.tell("trigger 1")
    line.until(lambda events: kinds(events, Trigger))
    line.link.pulse(1, time.monotonic() + 1.0, 20)
    line.link.pulse(2, time.monotonic() + 1.0, 20)  # not known: line control was started again
    events = line.until(lambda _: line.link.idle)
    wait_for(lambda: len(plc.log) == (timing == "line"))
    assert [event.part for event in kinds(events, OrderFailed)] == ([2] if timing == "line" else [])
    line.end()


def test_whatever_the_wire_loses_each_command_is_executed_once(plc, line):
    random.seed(1)
    events, parts = [], range(1, 25)
    for part in parts:
        plc.tell(random.choice(["lose 1", "miss 1", "late 70", "stale 70", "late 20", "belt 1"]), f"trigger {part}")
        events += line.until(lambda now: kinds(now, Trigger))
        trigger = kinds(events, Trigger)[-1]
        line.link.report(verdict(part, Verdict.REJECT))
        line.link.pulse(part, time.monotonic() - trigger.age + 4.0, 20)
        events += line.until(lambda _: line.link.idle)
    assert not kinds(events, OrderFailed) and not kinds(events, TriggerRefused)
    assert [event.part for event in kinds(events, Trigger)] == list(parts)
    assert [event.part for event in kinds(events, VerdictDelivered)] == list(parts)
    wait_for(lambda: len(plc.log) >= 2 * len(parts))
    for what in ("verdict", "reject"):
        assert [entry[1] for entry in plc.log if entry[0] == what] == list(parts)
    triggered = plc.triggered()
    assert all(abs((entry[4] - triggered[entry[1]] - 4000 + 2**31) % 2**32 - 2**31) <= 2 for entry in plc.log
               if entry[0] == "reject")
    counts = line.link.counters()
    assert counts["timeouts"] > 5


def test_a_reject_that_is_too_late_is_not_said_and_one_that_the_plc_refuses_is_told(plc, line):
    plc.tell("trigger 1")
    line.until(lambda events: kinds(events, Trigger))
    plc.cut(True)
    line.link.pulse(1, time.monotonic() + 0.1, 20)
    events = line.until(lambda events: kinds(events, OrderFailed))
    assert kinds(events, OrderFailed)[0].part == 1
    plc.cut(False)
    events = line.until(lambda events: LinkBack() in events)
    line.link.pulse(1, time.monotonic() - 0.003, 20)
    events = line.until(lambda events: kinds(events, OrderFailed))
    assert kinds(events, OrderFailed)[0].reason in ("too late", "it was not executed")


@pytest.mark.parametrize("how", ["deaf", "cut", "freeze"])
def test_a_plc_that_is_not_heard_is_lost_after_200_ms_and_found_again(plc, line, how):
    plc.cut(True) if how == "cut" else plc.tell(f"{how} 1")
    start = time.monotonic()
    events = line.until(lambda events: kinds(events, LinkLost))
    assert time.monotonic() - start > 0.1
    assert ("no heartbeat" if how == "freeze" else "no answer within 50 ms") in kinds(events, LinkLost)[0].reason
    plc.tell("trigger 5")
    plc.cut(False) if how == "cut" else plc.tell(f"{how} 0")
    events = line.until(lambda events: LinkBack() in events and kinds(events, Trigger))
    assert [event.part for event in kinds(events, Trigger)] == [5] and line.link.counters()["port_reopened"] == 0


def test_a_cable_that_is_unplugged_is_opened_again(plc, programs, tmp_path):
    line = Line(plc)
    line.until(lambda events: LinkBack() in events)
    plc.unplug()
    events = line.until(lambda events: kinds(events, LinkLost))
    assert str(plc.port) in kinds(events, LinkLost)[0].reason
    line.link.report(verdict(1))
    other = Plc(programs, tmp_path, session=8)
    try:
        events = line.until(lambda events: LinkBack() in events)
        assert line.link.counters()["port_reopened"] == 1
        other.tell("trigger 1")
        line.until(lambda events: kinds(events, Trigger))
        line.link.report(verdict(1))
        line.until(lambda events: kinds(events, VerdictDelivered))
    finally:
        line.end()
        other.end()


def test_a_plc_that_starts_anew_has_new_rings_and_gets_no_old_command(plc, line):
    plc.tell("trigger 1", "trigger 2")
    line.until(lambda events: len(kinds(events, Trigger)) == 2)
    plc.cut(True)
    line.link.report(verdict(1))
    line.link.pulse(2, time.monotonic() + 9, 20)
    plc.tell("session 8", "trigger 9")
    plc.cut(False)
    events = line.until(lambda events: kinds(events, Trigger) and kinds(events, OrderFailed))
    assert [event.part for event in kinds(events, Trigger)] == [9] and not kinds(events, VerdictDelivered)
    line.until(lambda _: plc.status() == "state 2 session 8 taken 1 confirms 0" and line.link.idle)
    assert plc.log == []


def test_a_line_that_is_started_again_goes_on_where_the_one_before_it_stopped(plc, line):
    plc.tell("trigger 1", "trigger 2", "confirm 1")
    line.until(lambda events: len(kinds(events, Trigger)) == 2 and kinds(events, Confirm))
    line.link.report(verdict(1))
    line.until(lambda _: line.link.idle)
    line.link.close()
    plc.tell("trigger 3")
    again = Line(plc)
    events = again.until(lambda events: kinds(events, Trigger))
    assert [event.part for event in kinds(events, Trigger)] == [3] and not kinds(events, Confirm)
    again.link.report(verdict(3))
    again.until(lambda events: kinds(events, VerdictDelivered))
    assert [entry[1] for entry in plc.log] == [1, 3]
    again.end()


def test_triggers_that_there_is_no_room_for_are_refused_and_those_overwritten_are_counted(plc, line):
    line.link.room = 1
    plc.tell("trigger 1", "trigger 2")
    events = line.until(lambda events: kinds(events, Trigger) and kinds(events, TriggerRefused))
    assert kinds(events, Trigger)[0].part == 1 and kinds(events, TriggerRefused) == [TriggerRefused(2)]
    line.link.room = 100
    plc.cut(True)
    plc.tell(*(f"trigger {part}" for part in range(3, 15)))
    wait_for(lambda: 14 in plc.triggered())
    plc.cut(False)
    events = line.until(lambda events: len(kinds(events, Trigger)) == 8)
    assert [event.part for event in kinds(events, Trigger)] == list(range(7, 15))
    assert kinds(events, TriggerRefused) == [TriggerRefused(0)] * 4
    assert line.link.counters()["overwritten"] == 4


def test_triggers_from_before_the_line_are_refused(plc):
    plc.tell(*(f"trigger {part}" for part in range(1, 21)))
    wait_for(lambda: 20 in plc.triggered())
    line = Line(plc)
    line.link.room = 0
    events = line.until(lambda events: len(kinds(events, TriggerRefused)) == 8)
    assert [event.part for event in kinds(events, TriggerRefused)] == list(range(13, 21))
    line.end()


def test_the_heartbeat_stands_still_when_nobody_calls_it_and_the_last_word_is_offline(plc, line):
    line.until(None, 0.2)
    line.beat = float("inf")
    line.until(None, 0.2)
    beats = [text for text in plc.lines if " beat " in text]
    line.until(None, 0.3)
    assert [text for text in plc.lines if " beat " in text] == beats
    line.link.heartbeat(LineStatus.OFFLINE)
    line.link.close()
    wait_for(lambda: plc.status().startswith("state 0 "))


def test_polling_leaves_no_garbage_for_a_collector_that_does_not_run(plc, line):
    plc.tell("encoder 5")
    line.until(None, 0.3)
    gc.collect()
    gc.disable()
    try:
        line.until(None, 1.0)
        garbage = gc.collect()
    finally:
        gc.enable()
    assert garbage < 50, f"{garbage} objects in 1 s"


@pytest.mark.parametrize(("options", "message"), [
    ({"read_at": 250, "write_at": 0}, "Modbus exception 2"),
    ({"read_at": 1}, "version 7 of the register map, expected 1"),
])
def test_registers_that_are_not_those_of_the_map_are_told_at_once(plc, options, message):
    with pytest.raises(LinkError, match=message):
        Line(plc, **options)


def test_a_port_that_is_not_there_or_taken_and_a_missing_package_are_told(plc, tmp_path, monkeypatch):
    with pytest.raises(LinkError, match="cannot open the PLC's port"):
        ModbusLink(str(tmp_path / "none")).open()
    line = Line(plc)
    with pytest.raises(LinkError, match="exclusively lock"):
        ModbusLink(str(plc.port)).open()
    line.end()
    monkeypatch.setitem(sys.modules, "pymodbus.client", None)
    with pytest.raises(LinkError, match=r"pip install 'lineside\[modbus\]'"):
        ModbusLink(str(plc.port)).open()


def modbus_line(rig, plc: Plc, **keys) -> None:
    text = (rig.folder / "line.toml").read_text()
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    text = text.replace('kind = "frames"', f'kind = "modbus"\n{more}').replace("lead_ms = 100", "lead_ms = 200")
    (rig.folder / "line.toml").write_text(text)


def test_blocks_that_overlap_are_refused(rig, plc):
    made = rig()
    modbus_line(made, plc, read_at=10, write_at=100)
    with pytest.raises(InputError, match="apart"):
        read_line_file(made.folder / "line.toml")


def test_a_whole_line_on_a_bad_cable(rig, plc):
    made = rig(loop=True, travel=1500)
    modbus_line(made, plc)
    run = made.run("--parts", "30", "--out", str(made.folder / "session"), command="record")
    wait_for(lambda: plc.status().startswith("state 2") or plc.status().startswith("state 3"), 60)
    for part in range(1, 31):
        plc.tell(*(["lose 1"] if part % 7 == 3 else ["miss 1"] if part % 7 == 5 else []), f"trigger {part}")
        time.sleep(0.15)
    ledger, text = finish(run)
    rows = made.rows()
    assert run.returncode == 0, text
    assert ledger["triggers"] == len(rows) == 30 == ledger["passed"] + ledger["rejected"] + ledger["uninspected"]
    told = {entry[1]: entry[2] for entry in plc.log if entry[0] == "verdict"}
    codes = {"PASS": 0, "REJECT": 1, "UNINSPECTED": 2}
    assert told == {row["part"]: codes[row["verdict"]] for row in rows}
    rejected = [entry[1] for entry in plc.log if entry[0] == "reject"]
    assert sorted(rejected) == sorted(row["part"] for row in rows if row["verdict"] != "PASS") and rejected
    triggered = plc.triggered()
    for _, part, _, _, at, clock in (entry for entry in plc.log if entry[0] == "reject"):
        assert abs((at - triggered[part] - 1500 + 2**31) % 2**32 - 2**31) <= 2 and (at - clock) % 2**32 < 2**31
    code, again, text = replay(made.folder / "session")
    assert code == 0 and again["equal"] and again["parts"] == 30 and again["wire"]["bytes"] > 1000, (again, text)

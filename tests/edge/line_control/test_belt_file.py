"""The belt's file: what a kill at any moment leaves of it."""

from __future__ import annotations

import random

import pytest

from edge.base.errors import InputError
from edge.line_control import belt_file
from edge.line_control.belt_file import COPY, HEADER, BeltFile, outcomes_of_earlier_run
from edge.line_control.control import LineControl
from edge.line_control.parts import BeltTiming
from edge.line_control.state import LineState
from edge.part.events import Confirm, PartVerdict, Tick, Trigger, VerdictDelivered
from edge.part.verdict import Cause, Verdict

RUN, OTHER = "0123456789abcdef", "fedcba9876543210"


class SentMessages:
    """In place of the runtime's connection: takes what it is sent."""

    def __init__(self, messages: list[object]) -> None:
        self.put = lambda message, urgent=True: messages.append(message)


def drive(state: LineState, belt: BeltFile, *steps) -> None:
    for now, event in steps:
        state.handle(event, now)
        belt.write(state.changes(), state.ledger)


def test_a_line_control_finds_parts_and_counts_as_they_were(tmp_path):
    state, belt = LineState(BeltTiming(1.0, 0.1), run_id=RUN), BeltFile(tmp_path / "belt", RUN)
    drive(state, belt, (0.0, Trigger(7, -5)), (0.1, PartVerdict(7, Verdict.PASS, score=0.25)),
          (0.1, VerdictDelivered(7)), (0.2, Trigger(8)), (0.3, PartVerdict(8, Verdict.REJECT, score=0.9)),
          (0.4, Trigger(9)), (0.45, Confirm(77)))
    belt.mark_written([1], state.ledger)
    left = BeltFile(tmp_path / "belt", RUN).saved
    assert left is not None and left.ledger == state.ledger and left.run_id == RUN
    assert [(part.id, part.trigger, part.encoder, part.verdict, part.score, part.ended) for part in left.parts] == [
        (7, 1, -5, Verdict.PASS, 0.25, True), (8, 2, None, Verdict.REJECT, 0.9, True), (9, 3, None, None, None, False)]
    assert [part.id for part in left.unwritten] == [8]
    drive(state, belt, (1.2, Tick()))
    left = BeltFile(tmp_path / "belt", RUN).saved
    assert left is not None and [part.id for part in left.parts] == [8, 9] and left.ledger.uninspected == 0
    again = BeltFile(tmp_path / "belt", OTHER)
    assert again.saved is not None and again.unwritten() == []
    assert [(e.part, e.verdict, e.cause, e.run_id) for e in outcomes_of_earlier_run(again.saved)] == [
        (8, Verdict.REJECT, None, RUN), (9, Verdict.UNINSPECTED, Cause.RESTART, RUN)]
    third = BeltFile(tmp_path / "belt", RUN).saved
    assert third is not None and third.run_id == OTHER and not third.parts


@pytest.mark.parametrize("seed", range(20))
def test_killed_in_the_middle_of_a_record_the_counts_still_add_up(tmp_path, monkeypatch, seed):
    """Every write of the map may be the last one, and be torn."""
    monkeypatch.setattr(belt_file, "SLOTS", 64)
    monkeypatch.setattr(belt_file, "SIZE", size := HEADER.size + 65 * 2 * COPY)
    random_ = random.Random(seed)
    path = tmp_path / "belt"
    state, belt = LineState(BeltTiming(1.0, 0.1), run_id=RUN), BeltFile(path, RUN)
    moments = [(0.02 * i, Trigger(i % 9 + 1)) for i in range(30)]  # ids that come again: several parts end at once
    drive(state, belt, *moments)
    steps = [(0.6 + 0.001 * i, PartVerdict(i % 9 + 1, random_.choice(list(Verdict))))
             for i in range(9)] + [(0.95, Tick()), (1.5, Tick())]
    for now, event in steps:
        whole = bytes(belt._map)
        state.handle(event, now)
        changed = state.changes()
        belt.write(changed, state.ledger)
        after = bytes(belt._map)
        places = [i for i in range(0, size - HEADER.size, COPY) if whole[HEADER.size + i:][:COPY] != after[
            HEADER.size + i:][:COPY]]
        if not places:
            continue
        order = [HEADER.size + i for i in places]
        torn, at = bytearray(whole), random_.randrange(len(order))
        numbers = sorted(order, key=lambda start: int.from_bytes(after[start:start + 8], "little"))
        for start in numbers[:at]:
            torn[start:start + COPY] = after[start:start + COPY]
        cut = random_.randrange(COPY)
        torn[numbers[at]:numbers[at] + cut] = after[numbers[at]:numbers[at] + cut]
        (tmp_path / "torn").write_bytes(torn)
        left = BeltFile(tmp_path / "torn", RUN).saved
        assert left is not None
        ledger, open_parts = left.ledger, sum(not part.ended for part in left.parts)
        assert ledger.triggers == ledger.passed + ledger.rejected + ledger.uninspected + open_parts == 30
        assert sum(ledger.causes.values()) == ledger.uninspected


@pytest.mark.parametrize("content", [b"lineside belt 3\n" + bytes(5000), b"lineside belt 5\n" + bytes(5000),
                                     b"something else" * 1000])
def test_a_file_of_another_version_is_kept_under_another_name_and_told(tmp_path, content):
    path = tmp_path / "line.belt"
    for number in (1, 2):
        path.write_bytes(content)
        belt = BeltFile(path, RUN)
        assert belt.saved is None and belt.set_aside == tmp_path / f"line.belt.old{number}"
        assert belt.set_aside.read_bytes() == content
    told: list[object] = []
    control = LineControl(None, LineState(BeltTiming(1.0, 0.1)), belt, SentMessages(told), pulse_ms=10, realtime=True)
    control._act(control._restore())
    assert [f"renamed to {belt.set_aside}" in message.text for message in told] == [True]  # type: ignore[attr-defined]


def test_a_new_file_and_one_whose_process_was_killed_before_it_wrote_anything_are_just_used(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "zeros").write_bytes(bytes(1000))
    for name in ("new", "empty", "zeros"):
        belt = BeltFile(tmp_path / name, RUN)
        assert belt.saved is None and belt.set_aside is None
        assert BeltFile(tmp_path / name, RUN).saved is not None


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(InputError, match="keeps the parts on the belt"):
        BeltFile(tmp_path / "nowhere" / "belt", RUN)


def test_parts_that_nobody_asks_for_leave_no_file_and_slots_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr(belt_file, "SLOTS", 8)
    state, belt = LineState(BeltTiming(1.0, 0.1), run_id=RUN), BeltFile(tmp_path / "belt", RUN)
    for i in range(1, 40):
        drive(state, belt, (2.0 * i, Trigger(i)), (2.0 * i + 0.1, PartVerdict(i, Verdict.PASS)),
              (2.0 * i + 0.1, VerdictDelivered(i)), (2.0 * i + 1.5, Tick()))
        belt.mark_written([i], state.ledger)
    assert belt.unwritten() == []
    belt.close()
    assert not (tmp_path / "belt").exists()

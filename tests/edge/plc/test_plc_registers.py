"""The register map of the PLC link `modbus`: the code against the page, its mailbox and its rings without a port."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge.plc.modbus.registers import (
    CONFIRM,
    CONFIRMS_AT,
    FROM_PLC_LENGTH,
    GIVE_UP_AFTER,
    HEADER,
    REWRITE_AFTER,
    RING,
    STATUS,
    TO_PLC,
    TRIGGER,
    TRIGGERS_AT,
    Block,
    Command,
    Mailbox,
    arrivals,
    span,
)
from edge.plc.wire import Ack, Settled, Type

PAGE = Path(__file__).parents[3] / "docs" / "plc-modbus.md"


def test_the_page_shows_the_map_of_the_code():
    page = PAGE.read_text()
    tables = [[(int(offset), int(words), name)
               for offset, words, name in re.findall(r"^\| (\d+) \| (\d) \| (\w+) \|", part, re.M)]
              for part in page.split("| offset |")[1:]]
    blocks = [HEADER, TRIGGER, CONFIRM, TO_PLC]
    assert [[(offset, words, name) for name, offset, words in block.fields] for block in blocks] == tables
    assert f"From offset {TRIGGERS_AT} on, the triggers, {TRIGGER.length} registers" in page
    assert (f"From offset {CONFIRMS_AT} on, the confirmations, {CONFIRM.length} registers each; "
            f"the block ends at {FROM_PLC_LENGTH}") in page
    assert f"first {STATUS.length} registers" in page and f"all {TO_PLC.length} in" in page
    assert f"first {HEADER.length} or" in page
    assert TO_PLC.fields[:len(STATUS.fields)] == STATUS.fields


@given(st.data())
def test_what_is_encoded_is_decoded(data):
    block = data.draw(st.sampled_from([HEADER, STATUS, TO_PLC, TRIGGER, CONFIRM]))
    values = {name: data.draw(st.integers(0, (1 << 16 * words) - 1)) for name, _, words in block.fields}
    registers = block.encode(values)
    assert len(registers) == block.length and all(0 <= register <= 0xFFFF for register in registers)
    assert block.decode(registers) == values


def test_the_high_word_comes_first_and_negative_numbers_are_in_twos_complement():
    block = Block(("part", 2), ("value", 2))
    assert block.encode({"part": 0x12345678, "value": -2}) == [0x1234, 0x5678, 0xFFFF, 0xFFFE]


@given(known=st.integers(0, 0xFFFF), new=st.integers(0, 100))
def test_arrivals_of_a_ring_are_its_last_entries_over_any_wrap(known, new):
    numbers, lost = arrivals(known, (known + new) & 0xFFFF)
    assert lost == max(0, new - RING)
    assert numbers == [(known + lost + 1 + i) & 0xFFFF for i in range(new - lost)]
    if numbers:
        first, slots = span(numbers)
        assert all(first <= (number - 1) % RING < first + slots <= RING for number in numbers)


def verdict(part: int, **more) -> Command:
    return Command(Type.VERDICT, 0, part, **more)


def test_a_command_is_written_until_it_is_executed_and_never_after_that():
    box = Mailbox()
    box.start(41)
    box.command(verdict(7))
    command = box.next(0.0, 41)
    assert command is not None and command.sequence == 42
    assert box.next(1.0, 41) is None  # `executed` has not been read since
    box.executed(41, 0)
    assert box.next(REWRITE_AFTER / 2, 41) is None
    assert box.next(REWRITE_AFTER, 41) is command and box.rewritten == 1 and command.sequence == 42
    box.executed(42, 0)
    assert box.next(9.0, 42) is None and not box.busy
    assert box.ended() == [Settled(Type.VERDICT, 7, Ack.DONE)] and box.ended() == []


def test_the_number_that_the_plc_holds_is_left_out_and_so_is_zero():
    box = Mailbox()
    box.start(0xFFFF)
    for part, number in ((1, 2), (2, 3)):
        box.command(verdict(part))
        assert box.next(0.0, 1).sequence == number
        box.executed(number, 2)
    assert [settled.ack for settled in box.ended()] == [Ack.TOO_LATE, Ack.TOO_LATE]


def test_a_reject_goes_first_and_a_later_verdict_replaces_one_that_waits():
    box = Mailbox()
    box.command(verdict(1))
    box.command(verdict(2))
    box.command(Command(Type.REJECT, 0, 2))
    box.command(Command(Type.VERDICT, 2, 1))
    box.command(Command(Type.REJECT, 0, 3))
    order = []
    for number in range(1, 5):
        command = box.next(0.0, number - 1)
        order.append((command.type, command.part, command.code))
        box.executed(command.sequence, 0)
    assert order == [(Type.REJECT, 2, 0), (Type.REJECT, 3, 0), (Type.VERDICT, 2, 0), (Type.VERDICT, 1, 2)]
    assert not box.busy


def test_what_is_too_late_is_given_up_but_not_before_it_is_known_whether_it_was_executed():
    box = Mailbox()
    box.command(Command(Type.REJECT, 0, 1, made=0.0, expires=0.1))
    box.command(Command(Type.REJECT, 0, 2, made=0.0, expires=0.1))
    box.next(0.0, 0)
    box.expire(0.2)
    assert box.ended() == [Settled(Type.REJECT, 2, None)]  # part 1 may have been executed
    box.executed(0, 0)
    box.expire(0.2)
    assert box.ended() == [Settled(Type.REJECT, 1, None)] and not box.busy
    box.command(verdict(3, made=1.0))
    box.next(1.0, 0)
    box.expire(1.0 + GIVE_UP_AFTER + 0.01)
    assert box.ended() == [Settled(Type.VERDICT, 3, None)]


def test_a_plc_that_began_anew_gets_no_command_of_before_but_the_fault():
    box = Mailbox()
    for command in (verdict(1), Command(Type.REJECT, 0, 2), Command(Type.FAULT, 4, 0)):
        box.command(command)
    box.next(0.0, 0)
    box.abandon()
    ended = {(settled.type, settled.part, settled.ack) for settled in box.ended()}
    assert ended == {(Type.REJECT, 2, None), (Type.VERDICT, 1, None)}
    assert box.next(0.0, 0).type is Type.FAULT


@given(st.lists(st.tuples(st.sampled_from(["answer lost", "write lost", "done"]), st.booleans()), max_size=60))
def test_whatever_the_wire_loses_each_command_acts_once_or_is_given_up(fates):
    box, executed, acted, now = Mailbox(), 0, [], 0.0
    for part in range(1, 11):
        box.command(verdict(part, made=0.0))
    for fate, slow in [*fates, *[("done", False)] * 30]:
        command = box.next(now, executed)
        if command is not None and fate != "write lost" and command.sequence != executed:
            executed = command.sequence
            acted.append(command.part)
        now += 0.05 if slow else 0.01
        box.executed(executed, 0)
        box.expire(now)
    assert not box.busy and len(acted) == len(set(acted))
    ended = box.ended()
    assert {settled.part for settled in ended} == set(range(1, 11)) and len(ended) == 10
    assert {settled.part for settled in ended if settled.ack is Ack.DONE} <= set(acted)

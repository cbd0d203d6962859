"""The line's side of the `frames` protocol, without a port."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.plc.wire import (
    LENGTH,
    REMEMBERED,
    RETRY_AFTER,
    TRIES,
    WINDOW,
    Ack,
    Conversation,
    Decoder,
    Message,
    PlcClock,
    Type,
)

DOCUMENT = Path(__file__).parents[3] / "docs" / "plc-frames.md"
TRIGGER = Message(Type.TRIGGER, 1, 0xBEEF, 1, 17, 88123, 40100)
PLC_MESSAGES = st.builds(
    Message, st.just(int(Type.TRIGGER)), st.integers(0, 1), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF),
    st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1))


def line_messages(data: bytes) -> list[tuple]:
    """The line's messages in bytes, taken apart by hand: (type, code, session, sequence, part, value, time)."""
    assert len(data) % LENGTH == 0
    messages = []
    for i in range(0, len(data), LENGTH):
        f = data[i:i + LENGTH]
        assert f[:2] == b"LS" and int.from_bytes(f[20:], "big") == zlib.crc32(f[:20])
        messages.append((f[2], f[3], int.from_bytes(f[4:6], "big"), int.from_bytes(f[6:8], "big"),
                         int.from_bytes(f[8:12], "big"),
                       int.from_bytes(f[12:16], "big", signed=True), int.from_bytes(f[16:20], "big")))
    return messages


def test_the_documents_example_is_what_we_send_and_read():
    example = bytes.fromhex(re.findall(r"^    (4C 53 .*)$", DOCUMENT.read_text(), re.M)[0])
    assert TRIGGER.encode() == example
    assert Decoder().feed(example) == [TRIGGER]


def test_the_documents_crc_check_value():
    assert f"{zlib.crc32(b'123456789'):08X}" in DOCUMENT.read_text()


def test_every_single_flipped_bit_is_found():
    data = TRIGGER.encode()
    for bit in range(8 * LENGTH):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        assert Decoder().feed(bytes(spoilt)) == []


@settings(deadline=None)
@given(messages=st.lists(PLC_MESSAGES, max_size=6), cut=st.integers(1, 40),
       garbage=st.lists(st.binary(max_size=50), min_size=7, max_size=7))
def test_no_good_frame_is_lost_to_garbage_around_it(messages, garbage, cut):
    stream = garbage[-1] + b"".join(g + f.encode() for g, f in zip(garbage, messages, strict=False))
    decoder = Decoder()
    got = [message for i in range(0, len(stream), cut) for message in decoder.feed(stream[i:i + cut])]
    assert [f for f in got if f in messages] == messages


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_garbage_makes_no_frame_and_no_error(data):
    assert Decoder().feed(data) == []


def test_frames_of_the_line_itself_are_no_messages_from_the_plc():
    decoder = Decoder()
    assert decoder.feed(Message(Type.VERDICT, 0, 1, 1, 1).encode()) == []
    assert decoder.feed(Message(Type.CONFIRM, 2, 1, 1, 1).encode()) == []  # a code that no document has
    assert decoder.counts["unknown_frames"] == 2


def test_a_command_that_comes_again_is_acknowledged_again_and_acts_once():
    conversation = Conversation(5)
    messages, _ = conversation.received(TRIGGER.encode() * 2, room=9)
    assert messages == [(TRIGGER, Ack.DONE)] and conversation.repetitions == 1
    sent, _ = conversation.poll(0.0)
    assert line_messages(sent) == [(Type.LINE_ACK, 0, 5, 1, 17, 0, 0)] * 2


def test_a_trigger_refused_once_stays_refused():
    conversation = Conversation(5)
    assert conversation.received(TRIGGER.encode(), room=0)[0] == [(TRIGGER, Ack.NOT_READY)]
    messages, _ = conversation.received(TRIGGER.encode(), room=9)
    assert messages == []
    assert [f[1] for f in line_messages(conversation.poll(0.0)[0])] == [Ack.NOT_READY] * 2


def test_no_more_triggers_are_taken_than_there_is_room_for():
    conversation = Conversation(5)
    data = b"".join(Message(Type.TRIGGER, 0, 1, n, n).encode() for n in range(3))
    messages, _ = conversation.received(data, room=2)
    assert [answer for _, answer in messages] == [Ack.DONE, Ack.DONE, Ack.NOT_READY]


def test_a_reject_goes_before_what_waits():
    conversation = Conversation(5)
    conversation.command(Type.VERDICT, 0, 1, 0)
    conversation.command(Type.REJECT, 0, 2, 0)
    assert [f[0] for f in line_messages(conversation.poll(0.0)[0])] == [Type.REJECT, Type.VERDICT]


def test_a_new_session_forgets_the_sequence_numbers():
    conversation = Conversation(5)
    conversation.received(TRIGGER.encode(), room=9)
    again = Message(Type.TRIGGER, 0, 0xCAFE, 1, 1)
    assert conversation.received(again.encode(), room=9)[0] == [(again, Ack.DONE)]


def test_more_than_the_remembered_numbers_are_forgotten_oldest_first():
    conversation = Conversation(5)
    for sequence in range(REMEMBERED + 1):
        conversation.received(Message(Type.TRIGGER, 0, 1, sequence, sequence).encode(), room=9)
    assert conversation.received(Message(Type.TRIGGER, 0, 1, 1, 1).encode(), room=9)[0] == []
    assert len(conversation.received(Message(Type.TRIGGER, 0, 1, 0, 0).encode(), room=9)[0]) == 1


def test_a_command_is_repeated_with_its_number_until_it_is_acknowledged():
    conversation = Conversation(5, 0xFFFF)
    conversation.command(Type.VERDICT, 1, 17, 8312)
    assert line_messages(conversation.poll(0.0)[0]) == [(Type.VERDICT, 1, 5, 0xFFFF, 17, 8312, 0)]
    assert conversation.poll(RETRY_AFTER / 2)[0] == b""
    assert line_messages(conversation.poll(RETRY_AFTER)[0]) == [(Type.VERDICT, 1, 5, 0xFFFF, 17, 8312, 0)]
    _, settled = conversation.received(Message(Type.PLC_ACK, 0, 1, 0xFFFF, 17).encode(), room=9)
    assert [(s.type, s.part, s.ack) for s in settled] == [(Type.VERDICT, 17, Ack.DONE)]
    assert conversation.idle and conversation.poll(1.0) == (b"", [])
    conversation.command(Type.VERDICT, 0, 18, 0)
    assert line_messages(conversation.poll(1.0)[0])[0][3] == 0  # 65535 is followed by 0


def test_a_command_is_given_up_after_ten_repetitions():
    conversation = Conversation(5)
    conversation.command(Type.REJECT, 0, 17, 0)
    sent, given_up, now = 0, [], 0.0
    while not given_up:
        data, given_up = conversation.poll(now)
        sent += len(data) // LENGTH
        now += RETRY_AFTER
    assert sent == TRIES == 11 and given_up[0].ack is None and conversation.idle


def test_a_reject_keeps_its_moment_and_is_not_sent_when_that_is_over():
    conversation = Conversation(5)
    conversation.command(Type.REJECT, 0, 17, 20, 40700, expires=1.005)
    for now in (0.94, 0.97):
        assert line_messages(conversation.poll(now)[0])[0][5:] == (20, 40700)
    data, given_up = conversation.poll(1.01)
    assert data == b"" and given_up[0].ack is None


def test_the_plcs_clock_is_taken_from_the_frames_that_came_the_shortest_way():
    clock = PlcClock()
    start = 0xFFFFFFFF - 2000  # it wraps after two seconds
    rng = np.random.default_rng(0)
    for beat in range(100):
        held_up = 0.0 if beat % 10 == 0 else float(rng.uniform(0, 0.08))
        clock.heard((start + 50 * beat) % 2**32, 100 + 0.05 * beat + held_up)
    assert clock.moment((start + 5000) % 2**32) == pytest.approx(105.0, abs=0.001)


@pytest.mark.parametrize("ppm", [-100, 100])
def test_a_clock_that_runs_faster_or_slower_is_followed(ppm):
    clock = PlcClock()
    for beat in range(20 * 600):
        clock.heard(round(50 * beat * (1 + ppm / 1e6)), 0.05 * beat)
    assert clock.moment(round(600_000 * (1 + ppm / 1e6))) == pytest.approx(600.0, abs=0.003)


def test_at_most_the_window_is_under_way():
    conversation = Conversation(5)
    for part in range(WINDOW + 5):
        conversation.command(Type.VERDICT, 0, part, 0)
    assert len(conversation.poll(0.0)[0]) == WINDOW * LENGTH
    conversation.received(Message(Type.PLC_ACK, 0, 1, 3, 3).encode(), room=9)
    assert [f[4] for f in line_messages(conversation.poll(0.001)[0])] == [WINDOW]


def test_a_later_verdict_takes_the_place_of_one_that_is_not_acknowledged():
    conversation = Conversation(5)
    conversation.command(Type.VERDICT, 0, 17, 0)
    conversation.poll(0.0)
    conversation.command(Type.VERDICT, 2, 17, 6)
    assert [f[1] for f in line_messages(conversation.poll(RETRY_AFTER)[0])] == [2]


@pytest.mark.parametrize(("sequence", "part"), [(1, 17), (0, 18)])
def test_an_acknowledgement_of_another_command_settles_nothing(sequence, part):
    conversation = Conversation(5)
    conversation.command(Type.VERDICT, 0, 17, 0)
    conversation.poll(0.0)
    assert conversation.received(Message(Type.PLC_ACK, 0, 1, sequence, part).encode(), room=9) == ([], [])
    assert not conversation.idle

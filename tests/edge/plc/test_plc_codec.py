"""The simulated PLC's own codec and its commands, proved against the document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.plc import wire as plc_frames
from simulation.plc.wire import COMMANDS, FROM_LINE, FROM_PLC, Frame, Inbox, Kind, Outbox, Reader

DOCUMENT = (Path(__file__).parents[3] / "docs" / "plc-frames.md").read_text()
LINE = 0xABCD  # the line's session
PASS, BAD, EJECT, RELEASE = range(4)


@st.composite
def frames(draw: st.DrawFn, kinds: frozenset[Kind] = FROM_LINE) -> Frame:
    kind = draw(st.sampled_from(sorted(kinds)))
    word = st.integers(0, 0xFFFF)
    return Frame(
        kind, draw(st.sampled_from(plc_frames.CODES[kind])), draw(word), draw(word),
        draw(st.integers(0, (1 << 32) - 1)), draw(st.integers(-1 << 31, (1 << 31) - 1)),
        draw(st.integers(0, (1 << 32) - 1)),
    )


# -- codec
# ----------------------------------------------------------------------------------------------------------------


def test_the_documents_example_is_what_the_codec_writes_and_reads() -> None:
    text = DOCUMENT[DOCUMENT.index("## An example"):]
    example = bytes.fromhex(re.search(r"^ {4}((?:[0-9A-F]{2} ?){24})$", text, re.M)[1])
    found = re.search(r"TRIGGER of part (\d+) .* count (\d+)", text)
    assert found is not None
    part, encoder = (int(n) for n in found.groups())
    clock = int(re.search(r"time (\d+) ", text)[1])
    session, sequence = re.search(r"session `(\w+)`, sequence (\d+)", text).groups()
    frame = Frame(Kind.TRIGGER, 1, int(session, 16), int(sequence), part, encoder, clock)
    assert frame.encode() == example
    assert Reader(FROM_PLC).feed(example) == [frame]


def test_the_documents_table_of_types_is_the_codecs() -> None:
    rows = re.findall(r"^\| `(\w\w)` \| (\w+) \| (\w+) \| (\w+) \|", DOCUMENT, re.M)
    assert len(rows) == len(Kind)
    for number, name, sender, command in rows:
        kind = Kind(int(number, 16))
        assert kind.name in (name, f"{sender}_{name}".upper())
        assert (kind in FROM_PLC) == (sender == "PLC")
        assert (kind in COMMANDS) == (command == "yes")


def test_the_crc_is_the_documents() -> None:
    found = re.search(r"`123456789` is `(\w+)`", DOCUMENT)
    assert found is not None and plc_frames.crc32(b"123456789") == int(found[1], 16)


@given(frames(frozenset(Kind)))
def test_a_frame_survives_the_wire(frame: Frame) -> None:
    assert len(frame.encode()) == 24
    assert Reader(frozenset(Kind)).feed(frame.encode()) == [frame]


def test_a_frame_with_any_one_bit_turned_is_rejected() -> None:
    good = Frame(Kind.REJECT, 0, LINE, 7, 17, 20, 40700).encode()
    for bit in range(192):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        reader = Reader()
        assert reader.feed(bytes(bad)) == []
        assert reader.garbage_bytes > 0


@settings(deadline=None)
@given(st.data(), st.lists(frames(), max_size=6))
def test_no_good_frame_is_lost_to_garbage_or_to_how_the_bytes_arrive(data: st.DataObject, sent: list[Frame]) -> None:
    garbage = st.one_of(
        st.binary(max_size=50), st.lists(st.sampled_from(b"LS"), max_size=40).map(bytes),
        st.builds(lambda f, n: f.encode()[:n], frames(), st.integers(0, 16)),  # for 19 see below
    )
    stream = b"".join(data.draw(garbage) + f.encode() for f in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = Reader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:end])
    assert got == sent
    assert reader.garbage_bytes == len(stream) - 24 * len(sent)


def test_a_frame_that_lost_only_its_last_byte_may_borrow_the_next_frames_first() -> None:
    """The exception to the rule above: it needs a CRC that ends in 4C, and what is taken is at least what was sent."""
    torn = next(f for n in range(10_000) if (f := Frame(Kind.LINE_HEARTBEAT, 2, LINE, 0, 0, n)).encode()[23]
                == ord("L"))
    after = [Frame(Kind.FAULT, code, LINE, code) for code in (1, 2)]
    assert Reader().feed(torn.encode()[:23] + after[0].encode() + after[1].encode()) == [torn, after[1]]


def test_an_echo_and_an_unknown_code_are_counted_and_dropped() -> None:
    reader = Reader()
    unknown = Frame(Kind.VERDICT, 4).encode()  # the codec does not stop its user; a line of the future may say this
    assert reader.feed(Frame(Kind.TRIGGER, 1).encode() + unknown
                       + Frame(Kind.FAULT, 1).encode()) == [Frame(Kind.FAULT, 1)]
    assert reader.unknown_frames == 2


# -- commands
# -------------------------------------------------------------------------------------------------------------


def test_a_command_is_sent_again_ten_times_with_its_number_and_then_given_up() -> None:
    outbox, sent = Outbox(65535), []
    outbox.post(Kind.TRIGGER, part=1)
    for step in range(12):
        send, lost = outbox.due(step * 0.020 + 1e-9 * step)
        sent += send
        assert bool(lost) == (step == 11)
    assert [f.sequence for f in sent] == [65535] * 11
    assert len(outbox) == 0


def test_at_most_32_commands_are_under_way_and_the_number_wraps() -> None:
    outbox = Outbox(65530)
    for part in range(40):
        outbox.post(Kind.TRIGGER, part=part)
    first = outbox.due(0.0)[0]
    assert [f.sequence for f in first] == [(65530 + n) % 65536 for n in range(32)]
    assert outbox.acknowledged(Frame(Kind.LINE_ACK, 0, LINE, first[5].sequence, first[5].part)) == first[5]
    assert [f.part for f in outbox.due(0.001)[0]] == [32]


def test_an_acknowledgement_of_another_part_settles_nothing() -> None:
    outbox = Outbox(1)
    outbox.post(Kind.TRIGGER, part=5)
    outbox.due(0.0)
    assert outbox.acknowledged(Frame(Kind.LINE_ACK, 0, LINE, 1, 4)) is None
    assert len(outbox) == 1


def take(inbox: Inbox, sequence: int, now: float = 0.0, session: int = LINE) -> bool:
    """Whether the command is new."""
    frame = Frame(Kind.FAULT, 0, session, sequence)
    inbox.begins(frame, now)
    if inbox.repetition(frame) is not None:
        return False
    inbox.remember(frame, 0, now)
    return True


def test_the_last_128_numbers_of_a_session_are_known_and_no_more() -> None:
    inbox = Inbox()
    numbers = [(65500 + n) % 65536 for n in range(plc_frames.REMEMBERED + 1)]
    assert all(take(inbox, n) for n in numbers)
    assert not any(take(inbox, n) for n in numbers[1:])
    assert inbox.sequence_errors == 0
    assert take(inbox, numbers[0])
    assert take(inbox, numbers[-1], session=LINE + 1)


@pytest.mark.parametrize(("numbers", "errors", "reordered"), [
    ((1, 2, 3), 0, 0), ((65535, 0, 1), 0, 0), ((1, 3, 2, 4), 0, 1), ((1, 3, 4), 1, 0), ((1, 500, 501), 1, 0),
    ((9, 3, 10), 1, 0),
])
def test_a_number_that_never_comes_or_goes_back_is_an_error(numbers: tuple[int, ...], errors: int,
                                                            reordered: int) -> None:
    inbox = Inbox()
    for n in numbers:
        take(inbox, n)
    inbox.settle(1.0)
    assert (inbox.sequence_errors, inbox.reordered) == (errors, reordered)

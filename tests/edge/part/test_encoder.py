"""Parts are tracked by the belt's encoder, whatever its speed."""

from __future__ import annotations

import math
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.line_control.parts import BeltTiming
from edge.line_control.state import LineState
from edge.part.encoder import BeltPosition, wrapped
from edge.part.events import Alarm, BeltStopped, Encoder, Ended, Order, PartVerdict, Tick, Trigger, VerdictDelivered
from edge.part.verdict import Cause, Verdict
from simulation.plc.belt_motion import BeltMotion
from tests.rig import finish, reconcile, rig

__all__ = ["rig"]
COUNTS = 1000  # a belt second
TIMING = BeltTiming(1.0, 0.1, 0.3, True, 1000, 5000.0)


def of(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def test_counts_wrap_and_the_speed_is_that_of_the_last_readings():
    position, start = BeltPosition(5000), (1 << 31) - 100
    for i in range(20):
        assert position.read(wrapped(start + 50 * i), 0.05 * i)
    assert position.speed == pytest.approx(1000) and position.count == wrapped(start + 950) < 0
    assert position.distance(wrapped(start + 1950)) == 1000
    assert position.moment(wrapped(start + 1950)) == pytest.approx(0.95 + 1.0)
    position.stop()
    assert math.isinf(position.moment(0))


def test_a_reading_that_cannot_be_is_left_out_and_two_that_agree_are_believed():
    position = BeltPosition(5000)
    assert position.read(0, 0.0) and position.read(50, 0.05)
    assert not position.read(900_000, 0.1) and position.read(150, 0.15)
    assert position.count == 150 and position.glitches == 1
    assert not position.read(-70_000, 0.2) and not position.read(-69_950, 0.25)
    assert position.count == -69_950 and position.read(-69_900, 0.3)


def test_a_reject_is_ordered_by_count_at_once_and_a_belt_that_stands_lets_no_deadline_pass():
    state = LineState(TIMING)
    for i in range(10):
        state.handle(Encoder(50 * i), 0.05 * i)
    actions = state.handle(Trigger(1, 450), 0.45)
    actions += state.handle(PartVerdict(1, Verdict.REJECT), 0.46)
    assert of(actions, Order) == [Order(1, pytest.approx(1.45), 1450)]
    state.handle(Trigger(2, 480), 0.48)
    actions = state.handle(Encoder(500), 0.5) + state.handle(BeltStopped(), 0.55)
    assert state.next_due() is None
    actions += state.handle(Tick(), 100.0)
    assert not of(actions, Ended) and not of(actions, Alarm)
    for i in range(10):  # it runs again, a little backwards first
        actions += state.handle(Encoder(500 - 20 * (i == 1) + 25 * i), 100.0 + 0.05 * i)
    actions += state.handle(PartVerdict(2, Verdict.PASS), 100.5) + state.handle(VerdictDelivered(2), 100.5)
    assert [(e.part, e.verdict) for e in of(actions, Ended)] == [(2, Verdict.PASS)] and state.ledger.late_verdicts == 0


def test_an_encoder_that_was_set_anew_makes_the_parts_on_the_belt_unmatched():
    state = LineState(TIMING)
    for i in range(5):
        state.handle(Encoder(50 * i), 0.05 * i)
    state.handle(Trigger(1, 200), 0.2)
    state.handle(Encoder(1_000_000), 0.25)
    assert state.open_parts == 1 and state.ledger.encoder_glitches == 1
    actions = state.handle(Encoder(1_000_050), 0.3)
    assert of(actions, Ended)[0].cause is Cause.UNMATCHED and "PLC must eject" in of(actions, Alarm)[0].text
    assert not of(actions, Order) and state.next_due() is not None


@pytest.mark.parametrize(("count", "text"), [
    (None, "came with no encoder count"), (900_000, "impossible encoder count 900000")])
def test_a_trigger_without_a_possible_count_is_unmatched_and_ejected_by_time(count, text):
    state = LineState(TIMING)
    for i in range(5):
        state.handle(Encoder(50 * i), 0.05 * i)
    actions = state.handle(Trigger(1, count), 0.2)
    assert of(actions, Ended)[0].cause is Cause.UNMATCHED and text in of(actions, Alarm)[0].text
    assert of(state.handle(Tick(), 1.1), Order) == [Order(1, 1.2)]


SPEEDS = st.lists(st.tuples(st.floats(0.2, 2.0), st.sampled_from([1.0, 0.5, 0.25, 0.0, 2.0, -0.1])), max_size=6)


@settings(max_examples=150, deadline=None)
@given(speeds=SPEEDS, offset=st.integers(-(1 << 31), (1 << 31) - 1),
       bad=st.lists(st.booleans(), min_size=12, max_size=12))
def test_at_any_speed_orders_are_by_the_triggers_count_and_every_part_ends_before_it_arrives(speeds, offset, bad):
    motion = BeltMotion(speeds)
    state, actions, now, part, marks = LineState(TIMING), [], 0.0, 0, {}

    def count(at: float) -> int:
        return wrapped(math.floor(motion.way(at) * COUNTS) + offset)

    while now < 60 and not (part == len(bad) and state.next_due() is None and now > 30):
        actions += state.handle(Encoder(count(now)), now)
        if motion.share(now) == 0:
            actions += state.handle(BeltStopped(), now)
        if part < len(bad) and now >= 0.4 * part and motion.share(now) > 0:
            part += 1
            marks[part] = now
            actions += state.handle(Trigger(part, count(now)), now)
            if bad[part - 1]:
                actions += state.handle(PartVerdict(part, Verdict.REJECT), now + 0.01)
        step = now + 0.05
        while (due := state.next_due()) is not None and due < step:
            now = max(now, due)
            actions += state.handle(Tick(), now)
        now = step
    ended = {e.part: e for e in of(actions, Ended)}
    assert sorted(ended) == list(range(1, part + 1)) and state.open_parts == 0
    for order in of(actions, Order):
        assert order.count == wrapped(count(marks[order.part]) + 1000)
    assert len(of(actions, Order)) == part  # rejects, and those without a verdict
    for number, end in ended.items():
        arrives = motion.moment(motion.way(marks[number]) + 1.0, marks[number])
        assert end.ended <= arrives + 0.051, (number, end.ended, arrives)


def test_a_line_ejects_the_right_parts_from_a_belt_that_stops_and_runs_back(rig):
    line = rig(loop=True, belt="travel_counts = 600\nfastest_counts_per_s = 5000")
    plc = line.plc(40, 15, "--by-encoder", speeds="1.5:1,0.7:0,1:0.5,0.2:-0.3,1:1,0.5:1.4")
    process = line.run()
    summary, _ = finish(plc)
    process.send_signal(signal.SIGTERM)
    ledger, told = finish(process)
    reconcile(ledger, summary, line.rows())
    assert ledger["rejected"] > 0 and ledger["uninspected"] == ledger["encoder_glitches"] == 0, told
    assert summary["failsafe_ids"] == []

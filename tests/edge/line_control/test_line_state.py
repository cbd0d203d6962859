"""The pure heart of line control: every trigger ends in exactly one outcome, in time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.line_control.parts import BeltTiming
from edge.line_control.state import LineState
from edge.part.events import (
    Alarm,
    BeltStopped,
    Challenge,
    Challenged,
    Clear,
    Confirm,
    Ended,
    Expose,
    FaultOver,
    LinkLost,
    Order,
    OrderFailed,
    PartVerdict,
    Report,
    RuntimeLost,
    RuntimeReady,
    Stop,
    Tick,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.part.verdict import Cause, Verdict

TIMING = BeltTiming(travel=1.0, lead=0.1)


def of(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def drive(state, *steps):
    """Carry out (now, event) steps; the actions of all of them."""
    return [action for now, event in steps for action in state.handle(event, now)]


def test_a_good_part_passes_when_the_plc_has_heard_it():
    state = LineState(TIMING)
    assert drive(state, (0.0, Trigger(7, 123))) == [Expose(7, 123, 1, 0.0)]
    assert drive(state, (0.3, PartVerdict(7, Verdict.PASS, score=0.1))) == [Report(7, Verdict.PASS, None, 0.1, False)]
    assert state.ledger.passed == 0
    (ended,) = drive(state, (0.31, VerdictDelivered(7)))
    assert (ended.part, ended.verdict, ended.triggered, ended.ended, ended.encoder) == (7, Verdict.PASS, 0.0, 0.31, 123)
    assert drive(state, (0.95, Tick()), (2.0, Tick())) == []
    assert state.ledger.passed == 1 and state.next_due() is None


def test_a_reject_is_ordered_once_and_lead_before_the_ejector():
    state = LineState(TIMING)
    actions = drive(state, (0.0, Trigger(7)), (0.3, PartVerdict(7, Verdict.REJECT, score=0.9)), (0.89, Tick()))
    assert of(actions, Ended)[0].verdict is Verdict.REJECT and not of(actions, Order)
    assert state.next_due() == pytest.approx(0.9)
    assert drive(state, (0.9, Tick()), (0.91, Tick()), (1.0, Tick())) == [Order(7, 1.0)]
    drive(state, (0.99, Confirm(7)), (1.4, Tick()))
    assert (state.ledger.confirmed, state.ledger.unconfirmed) == (1, 0)


def test_a_verdict_after_the_reject_was_due_still_orders_it_at_once():
    state = LineState(BeltTiming(1.0, 0.1))
    actions = drive(state, (0.0, Trigger(1)), (0.899, PartVerdict(1, Verdict.REJECT)), (0.9, Tick()))
    assert of(actions, Order) == [Order(1, 1.0)]


@pytest.mark.parametrize("eject", [True, False])
def test_no_verdict_by_the_deadline_is_uninspected_late_and_safe(eject):
    state = LineState(BeltTiming(1.0, 0.1, 0.3, eject))
    actions = drive(state, (0.0, Trigger(7)), (0.9, Tick()), (0.95, PartVerdict(7, Verdict.PASS)),
                    (1.0, VerdictDelivered(7)))
    (ended,) = of(actions, Ended)
    assert (ended.verdict, ended.cause) == (Verdict.UNINSPECTED, Cause.LATE)
    assert bool(of(actions, Order)) is eject
    assert of(actions, Report)[0].eject is eject
    assert (state.ledger.passed, state.ledger.uninspected, state.ledger.late_verdicts) == (0, 1, 1)


def test_a_verdict_that_arrives_at_the_deadline_itself_is_late():
    state = LineState(TIMING)
    actions = drive(state, (0.0, Trigger(7)), (0.9, PartVerdict(7, Verdict.PASS)))
    assert of(actions, Ended)[0].cause is Cause.LATE


def test_a_pass_that_the_plc_never_acknowledged_is_uninspected_and_ejected():
    state = LineState(TIMING)
    actions = drive(state, (0.0, Trigger(7)), (0.3, PartVerdict(7, Verdict.PASS)), (0.949, Tick()), (0.95, Tick()))
    (ended,) = of(actions, Ended)
    assert (ended.cause, ended.ended) == (Cause.LINK, 0.95)
    assert of(actions, Order) == [Order(7, 1.0)]


def test_uninspected_by_the_runtime_keeps_its_cause():
    state = LineState(TIMING)
    actions = drive(state, (0.0, Trigger(7)), (0.1, PartVerdict(7, Verdict.UNINSPECTED, Cause.NO_FRAME)), (0.9, Tick()))
    assert of(actions, Ended)[0].cause is Cause.NO_FRAME
    assert of(actions, Order) and state.ledger.causes == Counter({"no-frame": 1})


def test_the_same_id_twice_on_the_belt_makes_both_unmatched():
    state = LineState(TIMING)
    actions = drive(state, (0.0, Trigger(7)), (0.2, Trigger(7)), (0.3, PartVerdict(7, Verdict.PASS)), (0.9, Tick()),
                    (1.1, Tick()))
    assert [ended.cause for ended in of(actions, Ended)] == [Cause.UNMATCHED] * 2
    assert [order.due for order in of(actions, Order)] == [1.0, 1.2]
    assert state.ledger.triggers == state.ledger.uninspected == 2


def test_an_id_may_come_again_when_its_part_has_left_the_belt():
    state = LineState(TIMING)
    drive(state, (0.0, Trigger(7)), (0.1, PartVerdict(7, Verdict.PASS)), (0.1, VerdictDelivered(7)),
          (1.0 + TIMING.confirm, Tick()))
    drive(state, (2.0, Trigger(7)), (2.1, PartVerdict(7, Verdict.PASS)), (2.1, VerdictDelivered(7)))
    assert state.ledger.passed == 2 and state.ledger.uninspected == 0


def test_three_late_verdicts_in_a_row_are_a_fault_two_are_not():
    state = LineState(TIMING)
    alarms = of(drive(state, (0, Trigger(1)), (1, Trigger(2)), (1.1, PartVerdict(2, Verdict.PASS)),
                      (1.1, VerdictDelivered(2)), (2, Trigger(3)), (3, Trigger(4)), (4, Tick())), Alarm)
    assert not [alarm for alarm in alarms if alarm.code]
    alarms = of(drive(state, (4.1, Trigger(5)), (5.2, Tick())), Alarm)
    assert [alarm.code for alarm in alarms] == [3]
    over = drive(state, (5.3, Trigger(6)), (5.4, PartVerdict(6, Verdict.PASS)), (5.5, Trigger(7)),
                 (5.6, PartVerdict(7, Verdict.PASS)))
    assert of(over, FaultOver) == [FaultOver(3)]


def test_stop_ends_all_open_parts_and_orders_what_is_to_be_ejected():
    state = LineState(TIMING)
    drive(state, (0.0, Trigger(1)), (0.1, Trigger(2)), (0.2, PartVerdict(1, Verdict.REJECT)), (0.25, Trigger(3)),
          (0.3, PartVerdict(3, Verdict.PASS)))
    actions = drive(state, (0.4, Stop()))
    assert [(e.part, e.cause) for e in of(actions, Ended)] == [(2, Cause.STOPPED)]
    assert [(o.part, o.due) for o in of(actions, Order)] == [(1, 1.0), (2, 1.1)]
    assert not state.accepting
    (last,) = of(state.close(0.5), Ended)  # the PASS that nobody acknowledged
    assert (last.part, last.cause) == (3, Cause.LINK)
    ledger = state.ledger
    assert ledger.triggers == ledger.passed + ledger.rejected + ledger.uninspected == 3


def test_no_trigger_is_accepted_after_the_last_part_and_the_line_finishes():
    state = LineState(TIMING, parts=1)
    drive(state, (0.0, Trigger(1)))
    assert not state.accepting and not state.finished
    drive(state, (0.1, TriggerRefused(2)), (0.2, PartVerdict(1, Verdict.PASS)), (0.2, VerdictDelivered(1)),
          (1.4, Tick()))
    assert state.finished and state.ledger.refused_triggers == 1 and state.ledger.triggers == 1


def test_a_repeated_trigger_says_how_old_it_is_and_moves_no_part():
    state = LineState(TIMING)
    drive(state, (10.0, Trigger(2)), (10.04, Trigger(1, age=0.08)))
    assert state.next_due() == pytest.approx(9.96 + 1.0 - 0.1)
    actions = drive(state, (10.1, PartVerdict(1, Verdict.REJECT)), (10.1, PartVerdict(2, Verdict.REJECT)),
                    (11.0, Tick()))
    assert [(order.part, order.due) for order in of(actions, Order)] == [(1, pytest.approx(10.96)), (2, 11.0)]


def test_confirmations_without_a_command_and_commands_without_confirmation_are_counted():
    state = LineState(TIMING)
    drive(state, (0.0, Trigger(1)), (0.1, PartVerdict(1, Verdict.REJECT)), (1.0, Confirm(99)), (1.4, Tick()))
    assert (state.ledger.unexpected_confirms, state.ledger.unconfirmed, state.ledger.confirmed) == (1, 1, 0)


def test_a_verdict_on_an_earlier_part_of_the_same_id_is_not_taken_for_the_new_one():
    state = LineState(TIMING)
    drive(state, (0.0, Trigger(1)), (0.9, Tick()), (1.4, Tick()), (1.5, Trigger(1)))
    assert drive(state, (1.6, PartVerdict(1, Verdict.PASS, trigger=1))) == []
    assert of(drive(state, (1.7, PartVerdict(1, Verdict.REJECT, trigger=2))), Report)[0].verdict is Verdict.REJECT


@pytest.mark.parametrize("eject", [True, False])
def test_a_part_that_is_found_bad_too_late_is_still_ejected(eject):
    state = LineState(BeltTiming(1.0, 0.1, 0.3, eject))
    actions = drive(state, (0.0, Trigger(1)), (0.95, PartVerdict(1, Verdict.REJECT)))
    assert of(actions, Order) == [Order(1, 1.0)] and of(actions, Report)[-1].eject
    state = LineState(BeltTiming(1.0, 0.1, 0.3, eject))
    actions = drive(state, (0.0, Trigger(1)), (0.9, Tick()), (0.95, PartVerdict(1, Verdict.REJECT)))
    assert of(actions, Order) == [Order(1, 1.0)] and of(actions, Report)[-1].eject
    assert state.ledger.causes == Counter({"late": 1}) and state.ledger.uninspected == 1


def test_no_reject_is_timed_for_parts_on_a_belt_that_stopped():
    state = LineState(TIMING)
    actions = drive(state, (0.0, Trigger(1)), (0.1, PartVerdict(1, Verdict.REJECT)), (0.5, BeltStopped()),
                    (0.9, Tick()), (1.0, Tick()), (2.0, Trigger(2)), (2.1, PartVerdict(2, Verdict.REJECT)),
                    (2.9, Tick()))
    assert of(actions, Order) == [Order(2, 3.0)]
    assert "belt stopped with 1 parts" in of(actions, Alarm)[0].text


def test_without_what_inspects_no_trigger_is_taken_and_parts_without_a_verdict_are_safe_at_once():
    state = LineState(TIMING)
    actions = drive(state, (0.0, Trigger(1)), (0.1, PartVerdict(1, Verdict.PASS)), (0.2, Trigger(2)),
                    (0.3, RuntimeLost()))
    assert [(ended.part, ended.cause) for ended in of(actions, Ended)] == [(2, Cause.RESTART)] and state.room == 0
    assert of(drive(state, (0.31, VerdictDelivered(1)), (0.4, PartVerdict(2, Verdict.PASS))),
              Ended)[0].verdict is Verdict.PASS
    assert of(drive(state, (1.1, Tick())), Order) == [Order(2, 1.2)]
    drive(state, (1.5, RuntimeReady()))
    assert state.room > 0 and not state.finished


def test_a_line_control_that_was_started_again_takes_the_belt_over():
    before = LineState(TIMING)
    drive(before, (0.0, Trigger(1)), (0.1, PartVerdict(1, Verdict.PASS)), (0.1, VerdictDelivered(1)), (0.2, Trigger(2)),
          (0.3, PartVerdict(2, Verdict.REJECT)), (0.4, Trigger(3)), (0.45, PartVerdict(3, Verdict.PASS)),
          (0.5, Trigger(4)))
    after = LineState(TIMING, running=False)
    actions = after.restore(before.changes(), before.ledger, 0.6)
    assert [(ended.part, ended.trigger, ended.cause) for ended in of(actions, Ended)] == [
        (3, 3, Cause.RESTART), (4, 4, Cause.RESTART)]
    assert [order.part for order in of(drive(after, (1.45, Tick())), Order)] == [2, 3, 4]
    assert (after.ledger.triggers, after.ledger.passed, after.ledger.rejected, after.ledger.uninspected) == (4, 1, 1, 2)


def rejected(state: LineState, first: int, count: int, verdict=Verdict.REJECT):
    return [a for n in range(first, first + count) for a in drive(
        state, (3.0 * n, Trigger(n)), (3.0 * n + 0.1, PartVerdict(n, verdict)),
            (3.0 * n + 0.1, VerdictDelivered(n)), (3.0 * n + 0.95, Tick()),
            *([(3.0 * n + 1.0, Confirm(n))] if verdict is Verdict.REJECT else []), (3.0 * n + 2.0, Tick()))]


def test_a_fault_that_stops_the_line_stays_until_a_person_clears_it():
    state = LineState(BeltTiming(1.0, 0.1, late_in_a_row=2, stop_on=("late",)))
    alarms = of(drive(state, (0, Trigger(1)), (2, Trigger(2)), (4, Tick())), Alarm)
    assert [alarm.code for alarm in alarms] == [3] and "lineside clear" in alarms[0].text
    assert state.latched == {3} and state.room == 0
    assert drive(state, (5, TriggerRefused(3)))[0] == Alarm(0, "part 3 came while the line was not ready")
    assert drive(state, (6, Clear())) == [FaultOver(3)] and state.room > 0


def test_rejects_in_a_row_are_a_fault_that_the_next_good_part_ends():
    state = LineState(BeltTiming(1.0, 0.1, rejects_in_a_row=3))
    assert [alarm.code for alarm in of(rejected(state, 1, 5), Alarm)] == [5] and not state.latched
    assert FaultOver(5) in rejected(state, 6, 1, Verdict.PASS)
    assert not of(rejected(state, 7, 2), Alarm) and of(rejected(state, 9, 1), Alarm)


def test_an_ejection_that_nobody_saw_may_stop_the_line():
    state = LineState(BeltTiming(1.0, 0.1, stop_on=("unconfirmed",)))
    alarms = of(drive(state, (0, Trigger(1)), (0.1, PartVerdict(1, Verdict.REJECT)), (0.9, Tick()), (1.5, Tick())),
                Alarm)
    assert [alarm.code for alarm in alarms] == [6] and "not seen to leave" in alarms[0].text and state.latched == {6}


@pytest.mark.parametrize(("verdict", "confirmed", "passed"), [
    (Verdict.REJECT, True, True), (Verdict.REJECT, False, False), (Verdict.PASS, True, False), (None, True, False)])
def test_a_challenge_part_has_to_be_rejected_commanded_and_seen_to_leave(verdict, confirmed, passed):
    state = LineState(TIMING)
    steps = [(0.0, Challenge()), (0.1, Trigger(1)), (0.2, Trigger(2)), (0.3, PartVerdict(2, Verdict.PASS)),
             (0.3, VerdictDelivered(2))]
    steps += [(0.4, PartVerdict(1, verdict, score=0.2))] if verdict else []
    actions = drive(state, *steps, (1.05, Tick()), *([(1.15, Confirm(1))] if confirmed else []), (2.0, Tick()))
    (result,) = of(actions, Challenged)
    assert (result.part, result.passed) == (1, passed) and [order.part for order in of(actions, Order)] == [1]
    assert [alarm.code for alarm in of(actions, Alarm)] == ([] if passed else [7])
    assert state.ledger.causes == ({"challenge": 1} if verdict is Verdict.PASS else {"late": 1} if verdict is None
                                   else {})


EVENTS = st.one_of(
    st.builds(Trigger, st.integers(1, 6)), st.builds(PartVerdict, st.integers(1, 6), st.sampled_from(Verdict)),
    st.builds(VerdictDelivered, st.integers(1, 6)), st.builds(Confirm, st.integers(1, 6)), st.just(Tick()),
    st.builds(OrderFailed, st.integers(1, 6), st.just("too late")), st.builds(LinkLost, st.just("silence")),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(0, 0.4), EVENTS), max_size=60), eject=st.booleans())
def test_whatever_comes_every_part_ends_once_in_time_and_what_is_not_good_is_ejected(steps, eject):
    state = LineState(BeltTiming(1.0, 0.1, 0.3, eject))
    now, actions = 0.0, []
    for wait, event in steps:
        target = now + wait
        while (due := state.next_due()) is not None and due <= target:  # as the control thread wakes up
            now = max(now, due)
            actions += state.handle(Tick(), now)
        now = target
        actions += state.handle(event, now)
        ledger = state.ledger
        assert ledger.triggers == ledger.passed + ledger.rejected + ledger.uninspected + state.open_parts
    while (due := state.next_due()) is not None:
        now = max(now, due)
        actions += state.handle(Tick(), now)
    triggers = sum(isinstance(event, Trigger) for _, event in steps)
    ended = of(actions, Ended)
    assert len(ended) == triggers == state.ledger.triggers and state.open_parts == 0
    assert all(end.ended <= end.triggered + TIMING.travel - TIMING.lead / 2 + 1e-9 for end in ended)
    must = Counter(e.part for e in ended if e.verdict is Verdict.REJECT or (e.verdict is Verdict.UNINSPECTED and eject))
    ordered = Counter(order.part for order in of(actions, Order))
    may = must + Counter(e.part for e in ended if e.cause is Cause.LATE and not eject)  # found bad after the deadline
    assert must <= ordered <= may
    assert all(order.due in {e.triggered + 1.0 for e in ended if e.part == order.part} for order in of(actions, Order))

"""The PLC simulator: its machine on a made-up clock."""

from __future__ import annotations

import itertools
import math

import pytest

from edge.base.errors import InputError
from simulation.plc.conveyor import Conveyor
from simulation.plc.settings import PlcSettings
from simulation.plc.wire import COMMANDS, Ack, Frame, Kind

LINE = 0xABCD  # the line's session
PASS, BAD, EJECT, RELEASE = range(4)


# -- the machine, on a made-up clock: part k is fed at (k - 1) x 100 ms and at the ejector 600 ms later
# -------------------


def clock(moment: float) -> int:
    """The PLC's ms counter at a moment of a run that began at 0: it wraps after 5 s."""
    return round(1000 * moment - 5000) % (1 << 32)


class Rig:
    """A conveyor, and a line that sends heartbeats and acknowledges; everything else is said by the test."""

    def __init__(self, *, state: int = 2, **changes: object) -> None:
        self.events: list[tuple[float, str, dict[str, object]]] = []
        self.sent: list[Frame] = []
        self.now, self.state, self.alive, self.ack, self.answers = 0.0, state, True, 0, True
        self.session, self.sequence, self._beat = LINE, 0, 0.0
        self.plc = Conveyor(
            PlcSettings(**changes), session=0xBEEF,
            note=lambda t, event, **fields: self.events.append((t, event, fields)),
        )

    def run(self, until: float) -> None:
        while self.now < until:
            if self.alive and self._beat <= self.now:
                self.plc.receive(Frame(Kind.LINE_HEARTBEAT, self.state, self.session), self.now)
                self._beat += 0.05
            self.plc.advance(self.now)
            self.collect()
            self.now = min(until, max(self.plc.next_due(), self.now + 1e-6), self._beat if self.alive else math.inf)
        self.plc.advance(self.now)
        self.collect()

    def collect(self) -> list[Frame]:
        new = list(self.plc.outgoing)
        self.plc.outgoing.clear()
        self.sent += new
        for frame in new:
            if frame.kind in COMMANDS and self.answers:
                code = self.ack if frame.kind is Kind.TRIGGER else 0
                self.plc.receive(Frame(Kind.LINE_ACK, code, self.session, frame.sequence, frame.part), self.now)
        return new

    def say(self, kind: Kind, part: int, *, code: int = 0, value: int = 0, time: int = 0,
            sequence: int | None = None) -> int:
        """Send a command; the code of its acknowledgement."""
        if sequence is None:
            self.sequence += 1
        number = self.sequence if sequence is None else sequence
        self.plc.receive(Frame(kind, code, self.session, number, part, value, time), self.now)
        acks = [f for f in self.collect() if f.kind is Kind.PLC_ACK]
        assert len(acks) == 1 and acks[0].part == part
        return acks[0].code

    def verdict(self, part: int, code: int) -> int:
        return self.say(Kind.VERDICT, part, code=code)

    def reject(self, part: int, delay_ms: int, width_ms: int = 20, sequence: int | None = None) -> int:
        return self.say(Kind.REJECT, part, value=width_ms, time=clock(self.now + delay_ms / 1000), sequence=sequence)

    def result(self, key: str) -> object:
        return self.plc.summary(self.now)[key]

    def named(self, event: str) -> list[dict[str, object]]:
        return [fields for _, name, fields in self.events if name == event]

    def fed_and_judged(self, verdicts: dict[int, int], until: float = 0.54) -> None:
        self.run(until)
        for part, code in verdicts.items():
            assert self.verdict(part, code) == Ack.DONE


def test_a_reject_at_the_right_time_ejects_its_part() -> None:
    rig = Rig(parts=3)
    rig.fed_and_judged({1: PASS, 2: BAD, 3: RELEASE})
    assert rig.reject(2, delay_ms=162) == Ack.DONE  # fires at 702 ms, part 2 is there at 700 ms
    rig.run(1.2)
    assert rig.result("ejected_ids") == [2]
    assert rig.result("passed_ids_count") == 2
    assert rig.result("failsafe_ids") == rig.result("escaped_ids") == []
    assert rig.result("reject_lateness_ms") == pytest.approx({"p50": 2, "p99": 2, "max": 2, "mean": 2})
    assert [f.part for f in rig.sent if f.kind is Kind.CONFIRM] == [2]
    assert rig.plc.ended(rig.now) == "parts"


def test_a_reject_at_the_wrong_time_ejects_the_neighbour() -> None:
    rig = Rig(parts=3)
    rig.fed_and_judged({1: PASS, 2: BAD, 3: PASS})
    rig.reject(2, delay_ms=270)  # 810 ms: part 3 is the nearest, at 800 ms
    rig.run(1.2)
    assert rig.named("wrong_part") == [{"part": 3, "commanded": 2, "lateness_ms": pytest.approx(110)}]
    assert rig.result("ejected_ids") == [2, 3]
    assert rig.result("failsafe_ids") == [2]  # nothing was going to reach it in time


def test_a_reject_between_two_parts_hits_nothing() -> None:
    rig = Rig(parts=2, tolerance_ms=20)
    rig.fed_and_judged({1: PASS, 2: PASS})
    rig.reject(1, delay_ms=110)  # 650 ms
    rig.run(1.0)
    assert (rig.result("missed"), rig.result("ejected_ids"), rig.result("passed_ids_count")) == (1, [], 2)
    assert rig.result("contradictory_verdicts") == 1  # the part had been passed


def test_the_plc_ejects_what_has_no_verdict_that_lets_it_pass() -> None:
    rig = Rig(parts=5)
    rig.fed_and_judged({1: PASS, 2: BAD, 4: RELEASE, 5: EJECT})
    rig.run(1.3)
    assert rig.result("failsafe_ids") == rig.result("ejected_ids") == [2, 3, 5]
    assert [t for t, event, _ in rig.events if event == "ejected"] == pytest.approx([0.7, 0.8, 1.0])
    assert rig.result("missing_verdicts") == 1
    assert rig.result("verdicts") == {"pass": 1, "reject": 1, "uninspected_eject": 1, "uninspected_release": 1}


def test_a_part_that_the_ejector_does_not_take_and_nothing_lets_pass_has_escaped() -> None:
    rig = Rig(parts=1)
    rig.fed_and_judged({1: BAD})
    rig.reject(1, delay_ms=60, width_ms=0)  # a pulse of no width moves no valve
    rig.run(1.0)
    assert (rig.result("escaped_ids"), rig.result("missed"), rig.result("ejected_ids")) == ([1], 1, [])


def test_a_second_reject_of_a_part_and_a_pass_after_a_reject_are_counted() -> None:
    rig = Rig(parts=1)
    rig.run(0.5)
    assert rig.reject(1, delay_ms=98) == rig.reject(1, delay_ms=99) == rig.verdict(1, PASS) == Ack.DONE
    rig.run(1.0)
    counted = ("doubled_rejects", "contradictory_verdicts", "missed", "ejected_ids")
    assert [rig.result(key) for key in counted] == [1, 1, 1, [1]]


def test_a_repeated_reject_acts_once_and_is_acknowledged_twice() -> None:
    rig = Rig(parts=1)
    rig.fed_and_judged({1: BAD})
    assert rig.reject(1, delay_ms=60) == Ack.DONE
    rig.run(0.56)
    assert rig.reject(1, delay_ms=40, sequence=rig.sequence) == Ack.DONE
    rig.run(1.0)
    assert rig.reject(1, delay_ms=0, sequence=rig.sequence) == Ack.DONE  # as the first time, though the part has gone
    assert (rig.result("repeated_commands"), rig.result("missed"), rig.result("ejected_ids")) == (2, 0, [1])


def test_a_reject_read_late_because_the_simulator_was_held_up_fires_at_its_moment() -> None:
    rig = Rig(parts=1)
    rig.fed_and_judged({1: BAD})
    rig.now = 0.68  # nothing was looked at since 540 ms; the part was at the ejector at 600 ms
    assert rig.say(Kind.REJECT, 1, value=20, time=clock(0.601)) == Ack.DONE
    rig.run(1.0)
    assert (rig.result("ejected_ids"), rig.result("failsafe_ids")) == ([1], [])
    assert rig.result("reject_lateness_ms")["max"] == pytest.approx(1)


def test_a_reject_whose_moment_has_passed_fires_at_once() -> None:
    rig = Rig(parts=1)
    rig.fed_and_judged({1: PASS})
    rig.run(0.61)
    rig.say(Kind.REJECT, 1, value=20, time=clock(0.6))
    rig.run(1.0)
    assert [t for t, event, _ in rig.events if event == "ejected"] == pytest.approx([0.61], abs=0.002)


def test_a_reject_that_comes_late_or_for_no_part_is_refused() -> None:
    rig = Rig(parts=2)
    rig.fed_and_judged({1: PASS, 2: PASS})
    rig.run(0.66)
    assert rig.reject(1, delay_ms=0) == Ack.TOO_LATE
    assert rig.reject(99, delay_ms=0) == Ack.UNKNOWN_PART
    rig.run(1.0)
    assert (rig.result("ejected_ids"), rig.result("late_rejects"), rig.result("unknown_part_rejects")) == ([], 1, 1)


def test_verdicts_that_are_late_doubled_or_for_no_part_are_counted() -> None:
    rig = Rig(parts=2)
    rig.fed_and_judged({1: PASS})
    assert rig.verdict(1, PASS) == rig.verdict(1, BAD) == Ack.DONE
    rig.run(0.8)  # part 2 was thrown out at 700 ms
    assert rig.result("missing_verdicts") == 1
    assert rig.verdict(2, PASS) == Ack.TOO_LATE
    assert rig.verdict(3, PASS) == Ack.UNKNOWN_PART
    counted = ("late_verdicts", "missing_verdicts", "doubled_verdicts", "contradictory_verdicts",
               "unknown_part_verdicts")
    assert [rig.result(key) for key in counted] == [1, 0, 2, 1, 1]


def test_silence_of_200_ms_stops_triggers_and_empties_the_belt_by_the_fail_safe_rule() -> None:
    rig = Rig()
    rig.run(0.52)
    assert rig.verdict(1, PASS) == Ack.DONE
    rig.alive = rig.answers = False
    rig.run(2.0)
    assert [t for t, event, _ in rig.events if event == "heartbeat_lost"] == [pytest.approx(0.72)]
    assert rig.result("triggers") == 7
    assert rig.result("failsafe_ids") == [2, 3, 4, 5, 6, 7]
    assert rig.result("largest_heartbeat_gap_ms") == pytest.approx(1500)
    rig._beat, rig.alive, rig.answers = rig.now, True, True
    rig.run(2.5)
    assert rig.result("heartbeat_losses") == len(rig.named("heartbeat_back")) == 1
    assert rig.result("triggers") == 12
    assert rig.result("largest_heartbeat_gap_ms") == pytest.approx(1500)  # still, now that the line is back


def test_the_plc_beats_at_once_and_then_every_50_ms() -> None:
    rig = Rig()
    rig.run(0.49)
    beats = [f for f in rig.sent if f.kind is Kind.PLC_HEARTBEAT]
    assert [(f.code, f.value, f.session) for f in beats] == [(1, n, 0xBEEF) for n in range(10)]


def test_a_belt_that_was_held_up_feeds_no_parts_on_top_of_each_other() -> None:
    rig = Rig(rate=20.0)
    rig.run(0.501)
    rig._beat = rig.now = 1.03
    rig.run(2.0)
    fed = [t for t, event, _ in rig.events if event == "trigger"]
    assert min(b - a for a, b in itertools.pairwise(fed)) > 0.049
    assert fed[:3] == pytest.approx([0, 0.05, 0.1])
    assert [t for t, event, _ in rig.events if event == "ejected"] == pytest.approx([t + 0.6 for t in fed if t < 1.4])


def test_jitter_stays_within_its_share_of_the_pitch_and_does_not_add_up() -> None:
    rig = Rig(jitter=0.2, rate=100.0)
    rig.run(2.0)
    off = [t - 0.01 * n for n, (t, event, _) in enumerate(e for e in rig.events if e[1] == "trigger")]
    assert max(map(abs, off)) < 0.0021 and max(off) - min(off) > 0.002


def test_a_line_that_stops_being_ready_ends_a_run_that_counts_parts() -> None:
    rig = Rig(parts=50, start_timeout_s=0.4)
    rig.run(0.5)
    rig.state = 4
    rig.run(0.85)
    assert rig.plc.ended(rig.now) is None
    rig.run(1.0)
    assert rig.plc.ended(rig.now) == "line not ready"


@pytest.mark.parametrize(("state", "fed"), [(0, 0), (1, 0), (2, 6), (3, 6), (4, 0)])
def test_parts_are_fed_only_to_a_line_that_is_ready_or_degraded(state: int, fed: int) -> None:
    rig = Rig(state=state, start_timeout_s=0.4)
    rig.run(0.55)
    assert rig.result("triggers") == fed
    assert rig.plc.ended(rig.now) == (None if fed else "line not ready")


def test_a_refused_trigger_is_counted_and_its_part_is_thrown_out() -> None:
    rig = Rig(parts=1)
    rig.ack = Ack.NOT_READY
    rig.run(0.8)
    assert (rig.result("refused"), rig.result("failsafe_ids"), rig.result("missing_verdicts")) == (1, [1], 0)


def test_a_trigger_that_nobody_acknowledges_is_given_up() -> None:
    rig = Rig(parts=1)
    rig.answers = False
    rig.run(0.5)
    assert len([f for f in rig.sent if f.kind is Kind.TRIGGER]) == 11
    assert rig.result("unacknowledged") == 1


def test_a_new_session_forgets_the_numbers_but_not_the_parts() -> None:
    rig = Rig(parts=2)
    rig.fed_and_judged({1: PASS})
    number = rig.sequence
    rig.session += 1
    assert rig.say(Kind.VERDICT, 2, code=PASS, sequence=number) == Ack.DONE
    rig.run(1.0)
    assert (rig.result("sessions"), rig.result("repeated_commands"), rig.result("sequence_errors")) == (2, 0, 0)
    assert rig.result("passed_ids_count") == 2


def test_a_line_that_began_anew_gets_no_part_before_it_says_that_it_is_ready() -> None:
    rig = Rig()
    rig.run(0.26)
    rig.session, rig.alive = LINE + 1, False
    rig.say(Kind.FAULT, 0)  # its first frame, 50 ms before its first heartbeat
    rig.run(0.35)
    assert rig.result("triggers") == 3


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"jitter": 0.5}, {"noise": 1}, {"first_part": 0},
                                   {"travel_ms": float("nan")}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        PlcSettings(**wrong)

"""Line control as a state machine under hypothesis: whatever comes, in whatever order, and however often it dies."""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge.line_control.parts import BeltTiming
from edge.line_control.state import LineState
from edge.part.events import (
    Action,
    BeltStopped,
    Challenge,
    Clear,
    Confirm,
    Ended,
    Event,
    Expose,
    LinkBack,
    LinkLost,
    Order,
    OrderFailed,
    PartVerdict,
    Report,
    RuntimeLost,
    RuntimeReady,
    Tick,
    Trigger,
    VerdictDelivered,
)
from edge.part.verdict import Cause, Verdict

IDS = st.integers(1, 5)


class Line(RuleBasedStateMachine):
    """A line with few part ids, so that they come again, and the model of what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.timing = BeltTiming(1.0, 0.1, 0.3, True, late_in_a_row=2, rejects_in_a_row=3, stop_on=("late",))
        self.state, self.now = LineState(self.timing, run_id="s"), 0.0
        self.belt: dict[int, object] = {}  # what the belt's file would hold: parts by trigger
        self.ended: dict[int, Ended] = {}
        self.triggered: dict[int, tuple[int, float]] = {}  # trigger -> part, when
        self.told: dict[int, set[Verdict]] = {}  # trigger -> verdicts that the runtime gave it
        self.ordered: list[tuple[int, float]] = []
        self.held: set[int] = set()

    def handle(self, event: Event) -> list[Action]:
        before = self.state.ledger.triggers
        actions = self.state.handle(event, self.now)
        if self.state.ledger.triggers > before and isinstance(event, Trigger):
            self.triggered[self.state.ledger.triggers] = (event.part, self.now)
        self.take(actions)
        return actions

    def take(self, actions: list[Action]) -> None:
        for part in self.state.changes():
            self.belt[part.trigger] = part
            if part.gone:
                del self.belt[part.trigger]
        for action in actions:
            if isinstance(action, Ended):
                assert action.trigger not in self.ended, "a part ended twice"
                self.ended[action.trigger] = action
                assert (action.part, action.triggered) == self.triggered[action.trigger]
                if action.verdict is not Verdict.UNINSPECTED:
                    assert action.verdict in self.told[action.trigger], "a verdict that was another part's"
            elif isinstance(action, Order):
                self.ordered.append((action.part, action.due))
            elif isinstance(action, Expose):
                assert self.triggered.get(action.trigger, (action.part, action.at)) == (action.part, action.at)
            elif isinstance(action, Report):
                assert action.eject or action.verdict is Verdict.PASS

    def ticks(self, until: float) -> None:
        for _ in range(1000):
            if (due := self.state.next_due()) is None or due > until:
                break
            self.now = max(self.now, due)
            self.handle(Tick())
        else:
            raise AssertionError("a moment that is due never passes")
        self.now = until

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 0.4, 1.5]))
    def time_passes(self, seconds: float) -> None:
        self.ticks(self.now + seconds)
        self.handle(Tick())

    @precondition(lambda self: self.state.room)
    @rule(part=IDS)
    def a_part_comes(self, part: int) -> None:
        self.handle(Trigger(part))

    @precondition(lambda self: self.triggered)
    @rule(data=st.data(), verdict=st.sampled_from(Verdict))
    def a_verdict_comes(self, data: st.DataObject, verdict: Verdict) -> None:
        trigger = data.draw(st.sampled_from(sorted(self.triggered)[-6:]))
        self.told.setdefault(trigger, set()).add(verdict)
        cause = Cause.CAMERA if verdict is Verdict.UNINSPECTED else None
        self.handle(PartVerdict(self.triggered[trigger][0], verdict, cause, 0.5, trigger))

    @rule(part=IDS, event=st.sampled_from([VerdictDelivered, Confirm]))
    def the_plc_says(self, part: int, event: type) -> None:
        self.handle(event(part))

    @rule(event=st.sampled_from([OrderFailed(1, "too late"), LinkLost("silence"), LinkBack(), RuntimeReady(), Clear(),
                                 Challenge()]))
    def something_happens(self, event: Event) -> None:
        self.handle(event)

    @rule()
    def the_belt_stops(self) -> None:
        self.held |= {trigger for trigger in self.belt if not self.belt[trigger].ordered}  # type: ignore[attr-defined]
        self.handle(BeltStopped())

    @rule()
    def the_runtime_dies(self) -> None:
        self.handle(RuntimeLost())

    @rule()
    def line_control_dies(self) -> None:
        parts = [copy.copy(part) for part in self.belt.values()]
        ledger = copy.deepcopy(self.state.ledger)
        latched, position = set(self.state.latched), self.state
        self.state = LineState(self.timing, run_id="s", running=False)
        self.state.latched |= latched
        self.take(self.state.restore(parts, ledger, self.now))
        assert position is not self.state
        self.handle(RuntimeReady())

    @invariant()
    def the_ledger_adds_up(self) -> None:
        ledger = self.state.ledger
        ended = ledger.passed + ledger.rejected + ledger.uninspected
        assert ledger.triggers == ended + self.state.open_parts == len(self.triggered)
        assert sum(ledger.causes.values()) == ledger.uninspected
        assert len(self.ended) == ledger.passed + ledger.rejected + ledger.uninspected

    @invariant()
    def the_belt_is_in_order(self) -> None:
        belt = self.state._belt
        assert all(part.ended and not part.to_eject and not part.challenge for part in belt.idle)
        assert all(not part.ended or part.to_eject or part.challenge for part in belt.busy)
        for parts in (belt.busy, belt.idle, list(belt)):
            assert [part.due for part in parts] == sorted(part.due for part in parts)
        assert len(list(belt)) == len(belt) and all(part in belt.of(part.id) for part in belt)

    @invariant()
    def every_part_has_an_outcome_before_it_is_at_the_ejector(self) -> None:
        for trigger, (_, at) in self.triggered.items():
            if trigger not in self.ended:
                assert self.now < at + self.timing.travel, trigger

    def teardown(self) -> None:
        self.ticks(self.now + 5)
        assert len(self.ended) == len(self.triggered)
        for trigger, end in self.ended.items():
            due = end.triggered + self.timing.travel
            ordered = any(part == end.part and abs(moment - due) < 1e-9 for part, moment in self.ordered)
            if end.verdict is Verdict.PASS:
                continue
            assert ordered or trigger in self.held, f"part {end.part} was not ordered out"


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)

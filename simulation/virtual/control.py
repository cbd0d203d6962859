"""Line control in virtual time: the real `LineState`, what survives its death, and a look at its rules after every event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import replace

from edge.line_control.parts import BeltPart, BeltTiming, Ledger
from edge.line_control.state import LineState
from edge.part.events import Action, Ended, Event

COUNTS = ("triggers", "passed", "rejected", "uninspected")


class VirtualControl:
    """Line control, one life after the other. ``alive``: whether it runs; ``life``: its number, and what is under way belongs to one."""

    def __init__(self, timing: BeltTiming, counts: Counter[str], fail: Callable[[str], None]) -> None:
        """counts: gets what was counted. fail: raises LinesideError."""
        self.alive, self.life = True, 0
        self.causes: Counter[str] = Counter()
        self._counts, self._fail = counts, fail
        self._start(LineState(timing))

    def _start(self, state: LineState) -> None:
        self.state = state
        self._kept: dict[int, BeltPart] = {}  # what the belt's file holds
        self._kept_ledger = Ledger()

    def handle(self, event: Event, now: float) -> list[Action]:
        """What line control does with an event: what has changed is kept before anything is done. Then every rule is looked at."""
        actions = self.state.handle(event, now)
        self._keep()
        self._check(now)
        return actions

    def _keep(self) -> None:
        for part in self.state.changes():
            if part.gone:
                self._kept.pop(part.trigger, None)
            else:
                self._kept[part.trigger] = part

    def _check(self, now: float) -> None:
        state, ledger = self.state, self.state.ledger
        self._counts["events"] += 1
        if ledger.triggers != ledger.passed + ledger.rejected + ledger.uninspected + state.open_parts:
            self._fail(f"the ledger does not add up: {ledger}, {state.open_parts} open")
        if sum(ledger.causes.values()) != ledger.uninspected:
            self._fail(f"the causes do not add up: {ledger}")
        due = state.next_due()
        if due is not None and due <= now:
            self._fail(f"a moment has passed without what is due then: {now - due:.6f} s")

    def kill(self) -> None:
        """kill -9: what it was about to do is not done, and what is in the belt's file is all that is left."""
        self.alive, self.life = False, self.life + 1
        ledger = self.state.ledger
        self._kept_ledger = replace(ledger, causes=Counter(ledger.causes))

    def restore(self, open_parts: Container[int], now: float) -> list[Action]:
        """Start again with what is in the belt's file; no runtime is ready. open_parts: the triggers whose outcome nobody was told yet."""
        state = LineState(self.state.timing, running=False)
        parts = [replace(part) for part in self._kept.values()]
        told_nobody = [part for part in parts if part.ended and part.trigger in open_parts]  # its outcome was kept, and not told
        self.alive = True
        actions = state.restore(parts, self._kept_ledger, now)
        self._start(state)
        self._kept = {part.trigger: part for part in parts}
        self._keep()
        ended = {action.trigger for action in actions if isinstance(action, Ended)}
        return [*actions, *(state.outcome(part) for part in told_nobody if part.trigger not in ended)]

    def renew(self, timing: BeltTiming) -> None:
        """The line was stopped, and starts with other times."""
        self.add_counts()
        self.life += 1
        self._start(LineState(timing))

    def add_counts(self) -> None:
        """Add those of this ledger, which comes to its end."""
        ledger = self.state.ledger
        for name in (*COUNTS, "late_verdicts", "confirmed", "unconfirmed", "unexpected_confirms", "link_losses"):
            self._counts[name] += getattr(ledger, name)
        self.causes.update(ledger.causes)

"""Line control in virtual time: the real `LineState`, what survives its death, and a check of its rules after every
event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import replace

from edge.line_control.parts import BeltPart, BeltTiming, Ledger
from edge.line_control.state import LineState
from edge.part.events import Action, Ended, Event

COUNTS = ("triggers", "passed", "rejected", "uninspected")


class VirtualControl:
    """Line control, process after process.

    ``alive``: whether one runs. ``life``: its number; messages belong to one life.
    """

    def __init__(self, timing: BeltTiming, counts: Counter[str], fail: Callable[[str], None]) -> None:
        """counts: takes the counts. fail: raises LinesideError."""
        self.alive, self.life = True, 0
        self.causes: Counter[str] = Counter()
        self._counts, self._fail = counts, fail
        self._start(LineState(timing))

    def _start(self, state: LineState) -> None:
        self.state = state
        self._kept: dict[int, BeltPart] = {}  # what the belt file holds
        self._kept_ledger = Ledger()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle an event as line control does: keep what has changed before acting on it. Then check every rule."""
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
            self._fail(f"something was due {now - due:.6f} s ago and was not done")

    def kill(self) -> None:
        """kill -9: its last actions are not carried out, and only the belt file is left."""
        self.alive, self.life = False, self.life + 1
        ledger = self.state.ledger
        self._kept_ledger = replace(ledger, causes=Counter(ledger.causes))

    def restore(self, open_parts: Container[int], now: float) -> list[Action]:
        """Restart from the belt file; no runtime is ready. open_parts: triggers whose outcome was not reported yet."""
        state = LineState(self.state.timing, running=False)
        parts = [replace(part) for part in self._kept.values()]
        unreported = [part for part in parts if part.ended and part.trigger in open_parts]  # kept, but not reported
        self.alive = True
        actions = state.restore(parts, self._kept_ledger, now)
        self._start(state)
        self._kept = {part.trigger: part for part in parts}
        self._keep()
        ended = {action.trigger for action in actions if isinstance(action, Ended)}
        return [*actions, *(state.outcome(part) for part in unreported if part.trigger not in ended)]

    def renew(self, timing: BeltTiming) -> None:
        """The line was stopped, and starts with other timing."""
        self.add_counts()
        self.life += 1
        self._start(LineState(timing))

    def add_counts(self) -> None:
        """Add the counts of this ledger, which ends."""
        ledger = self.state.ledger
        for name in (*COUNTS, "late_verdicts", "confirmed", "unconfirmed", "unexpected_confirms", "link_losses"):
            self._counts[name] += getattr(ledger, name)
        self.causes.update(ledger.causes)

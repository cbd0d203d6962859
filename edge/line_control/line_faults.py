"""The faults that line control finds itself, and which of them stop the line until a person clears them."""

from __future__ import annotations

from edge.line_control.parts import STOPPING, BeltTiming
from edge.part.events import Action, Alarm, FaultOver
from edge.part.faults import FaultCode
from edge.part.verdict import Verdict


class LineFaults:
    """Counts late verdicts and rejected parts in a row. Each method appends to ``actions`` what is to be reported."""

    def __init__(self, timing: BeltTiming) -> None:
        self.latched: set[int] = set()  # active faults that stop the line
        self._timing = timing
        self._stopping = {STOPPING[name] for name in timing.stop_on}
        self._late_in_a_row = self._rejects_in_a_row = 0

    def report(self, code: int, text: str, actions: list[Action]) -> None:
        """Report a fault. It stops the line if the line file says so."""
        if code in self._stopping:
            self.latched.add(code)
            text += ". The line takes no parts until it is cleared: `lineside clear LINE.toml`, or CLEAR of the PLC"
        actions.append(Alarm(code, text))

    def clear(self, actions: list[Action]) -> None:
        """A person has dealt with the faults that stop the line."""
        actions += [FaultOver(code) for code in sorted(self.latched)]
        self.latched.clear()
        self._late_in_a_row = self._rejects_in_a_row = 0

    def verdict_late(self, actions: list[Action]) -> None:
        """A part had no verdict at its deadline."""
        self._late_in_a_row += 1
        if self._late_in_a_row == self._timing.late_in_a_row:
            text = f"{self._late_in_a_row} verdicts in a row were late: slow the belt, or lengthen its travel"
            self.report(FaultCode.LATE, text, actions)

    def verdict_in_time(self, actions: list[Action]) -> None:
        """A verdict came before its deadline."""
        if self._late_in_a_row >= self._timing.late_in_a_row and FaultCode.LATE not in self.latched:
            actions.append(FaultOver(FaultCode.LATE))
        self._late_in_a_row = 0

    def part_ended(self, verdict: Verdict, actions: list[Action]) -> None:
        """A part has its outcome."""
        if not (limit := self._timing.rejects_in_a_row):
            return
        self._rejects_in_a_row = self._rejects_in_a_row + 1 if verdict is Verdict.REJECT else 0
        if self._rejects_in_a_row == limit:
            text = f"{self._rejects_in_a_row} parts in a row were rejected: look at the parts, the camera and the light"
            self.report(FaultCode.REJECTS, text, actions)
        elif self._rejects_in_a_row == 0 and FaultCode.REJECTS not in self.latched:
            actions.append(FaultOver(FaultCode.REJECTS))

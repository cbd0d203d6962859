"""What several PLC links share: the numbers of verdicts, the times of triggers, and the errors of a serial port."""

from __future__ import annotations

import termios
from collections import OrderedDict

import serial

from edge.part.events import Report
from edge.part.verdict import Cause, Verdict

PORT_ERRORS = (serial.SerialException, OSError, termios.error, ValueError, TypeError)  # pyserial raises all of these
LINK_LOST_AFTER = 0.200  # s of silence after which the link counts as lost
REOPEN_AFTER = 0.5  # s between two attempts to open a lost port
LATE_BY = 0.005  # s after its due moment, a REJECT is not sent any more
TIME_LOST = "its trigger time was lost in a restart; the PLC ejects it by the fail-safe rule"
CAUSES = {cause: number for number, cause in enumerate(Cause, 1)}


def verdict_numbers(report: Report) -> tuple[int, int]:
    """A verdict as (code, value).

    code: 0 PASS, 1 REJECT, 2 UNINSPECTED (eject), 3 UNINSPECTED (let pass). value: score x 10000, or the cause; signed
    32 bit.
    """
    if report.verdict is Verdict.UNINSPECTED:
        return (2 if report.eject else 3), (CAUSES[report.cause] if report.cause else 0)
    value = max(-0x80000000, min(round((report.score or 0.0) * 10_000), 0x7FFFFFFF))
    return (0 if report.verdict is Verdict.PASS else 1), value


class TriggerTimes:
    """When each part was before the camera, on the PLC's clock and on ours.

    Pulses are timed on the PLC's, so no delay moves them.
    """

    KNOWN = 4096  # parts

    def __init__(self) -> None:
        self._triggers: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def note(self, part: int, time: int, stood: float) -> None:
        """time: ms of the PLC's clock, unsigned 32 bit. stood: the same moment in s of ``time.monotonic``."""
        self._triggers[part] = (time, stood)
        if len(self._triggers) > self.KNOWN:
            self._triggers.popitem(last=False)

    def plc_time(self, part: int, moment: float) -> int | None:
        """The PLC's clock (ms) at ``moment`` (s), measured from the part's trigger.

        None if the trigger was lost in a restart of line control: a guessed moment might hit another part.
        """
        if part not in self._triggers:
            return None
        time, stood = self._triggers[part]
        return (time + round(1000 * (moment - stood))) & 0xFFFFFFFF

"""PLC link `toy`: a whole kind of PLC link in one file.

It makes parts by itself, confirms each ejection, and writes down what it gets.
"""

from __future__ import annotations

import json
import select
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from edge.part.events import Confirm, Event, LinkBack, Report, Trigger, TriggerRefused, VerdictDelivered
from edge.plc.link import LineStatus
from edge.plc.section import PlcSection, WireTimes
from edge.plc.tape import LiveTape, Tape


class ToySection(PlcSection):
    """[plc] kind = "toy": parts at a rate, without a PLC"""

    link = "tests.toys.plc:ToyLink"
    has_encoder = False
    kind: Literal["toy"]
    parts: int = Field(ge=1)
    rate: float = Field(default=10, gt=0, le=100)  # parts/s

    def wire_times(self) -> WireTimes:
        """There is no wire."""
        return WireTimes(0.0, 0.0)


class ToyLink:
    """Follows the protocol `edge.plc.link.PlcLink`.

    ``port`` is a file that gets a line of JSON for each call of the line.
    """

    def __init__(self, port: str, parts: int, rate: float, tape: Tape | None = None) -> None:
        self.room = 0
        self._now = (tape or LiveTape()).now
        self._path, self._parts, self._pitch = Path(port), parts, 1 / rate
        self._file: IO[str] | None = None
        self._part = 0
        self._next = float("inf")
        self._events: list[tuple[float, Event]] = [(0.0, LinkBack())]  # (when it happens, s)

    def open(self) -> None:
        self._file = self._path.open("a")

    def _note(self, **content: object) -> None:
        assert self._file is not None
        print(json.dumps(content), file=self._file, flush=True)

    @property
    def idle(self) -> bool:
        return not self._events

    def report(self, report: Report) -> None:
        self._note(part=report.part, verdict=report.verdict.value)
        self._events.append((0.0, VerdictDelivered(report.part)))

    def fault(self, code: int, part: int = 0) -> None:
        self._note(fault=code)

    def pulse(self, part: int, due: float, width_ms: int, count: int | None = None) -> None:
        self._note(eject=part, width_ms=width_ms)
        self._events.append((due, Confirm(part)))

    def heartbeat(self, status: LineStatus) -> None:
        if status in (LineStatus.READY, LineStatus.DEGRADED) and self._part < self._parts:
            self._next = min(self._next, self._now())

    def read_events(self, timeout: float, wake: int) -> list[Event]:
        moment = min([self._next, *(at for at, _ in self._events)], default=float("inf"))
        select.select([wake], [], [], max(0.0, min(timeout, moment - self._now())))
        now = self._now()
        events = [event for at, event in self._events if at <= now]
        self._events = [(at, event) for at, event in self._events if at > now]
        if now >= self._next:
            self._part += 1
            self._next = now + self._pitch if self._part < self._parts else float("inf")
            events.append(Trigger(self._part) if self.room > 0 else TriggerRefused(self._part))
            self.room -= 1
        return events

    def counters(self) -> dict[str, int]:
        return {"parts": self._part}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

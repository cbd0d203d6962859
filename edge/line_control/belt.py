"""The parts on the belt in the order in which they reach the ejector, and when line control next has to act on one of
them.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Iterator
from itertools import takewhile
from operator import attrgetter

from edge.line_control.parts import BeltPart, BeltTiming
from edge.part.encoder import BeltPosition

due = attrgetter("due")


def _needs_order_or_verdict(part: BeltPart) -> bool:
    return part.verdict is None or part.awaits_ejection


def _is_idle(part: BeltPart) -> bool:
    return part.ended and not part.to_eject and not part.challenge


class Belt:
    """``busy`` parts still need an action; ``idle`` parts have passed and only have to leave. Both lists are sorted by
    due time.

    On a fast line nearly all parts are idle, so what happens for each event looks at the busy ones alone.
    """

    def __init__(self, timing: BeltTiming) -> None:
        self._timing = timing
        self.busy: list[BeltPart] = []
        self.idle: list[BeltPart] = []
        self._by_id: dict[int, list[BeltPart]] = {}

    def __len__(self) -> int:
        return len(self.busy) + len(self.idle)

    def __iter__(self) -> Iterator[BeltPart]:
        """A copy of both lists in order of due time, so that the loop may move or remove parts."""
        return iter(list(heapq.merge(self.busy, self.idle, key=due)))

    def of(self, part_id: int) -> list[BeltPart]:
        """The parts with this id in order of due time: one, unless the PLC used an id twice."""
        parts = self._by_id.get(part_id, [])
        return parts if len(parts) < 2 else sorted(parts, key=due)

    def add(self, part: BeltPart) -> None:
        """Add a part."""
        # a repeated trigger may be older than the last part
        insort(self.idle if _is_idle(part) else self.busy, part, key=due)
        self._by_id.setdefault(part.id, []).append(part)

    def place(self, part: BeltPart) -> None:
        """Move a part that has changed to the list where it belongs now."""
        here, there = (self.busy, self.idle) if _is_idle(part) else (self.idle, self.busy)
        if part in here:
            here.remove(part)
            insort(there, part, key=due)

    def gone(self, now: float) -> list[BeltPart]:
        """The parts that have left the belt by now."""
        due_by_now = [part for parts in (self.busy, self.idle) for part in takewhile(
            lambda part: part.due <= now, parts)]
        return [part for part in due_by_now if now >= self._leaves(part)]

    def remove(self, part: BeltPart) -> None:
        """Remove a part."""
        (self.busy if part in self.busy else self.idle).remove(part)
        same_id = self._by_id[part.id]
        same_id.remove(part)
        if not same_id:
            del self._by_id[part.id]

    def _leaves(self, part: BeltPart) -> float:
        if part.target is not None and not part.arrived:
            return math.inf
        return part.due + self._timing.confirm if part.ordered and not part.confirmed else part.due

    def next_due(self, *, lazy: bool) -> float | None:
        """When line control next has to act; None while no part needs it.

        lazy: not for idle parts, which only have to leave.
        """
        first, lead = math.inf, self._timing.lead
        for part in self.busy if lazy else self:
            if part.due - lead >= first:
                break  # this part and all later ones are due later
            first = min(first, *self._moments(part))
        return None if math.isinf(first) else first

    def next_order(self) -> float:
        """When the first part needs its REJECT, or its verdict is late; infinity if there is none."""
        return next((part.due - self._timing.lead for part in self.busy if _needs_order_or_verdict(part)), math.inf)

    def _moments(self, part: BeltPart) -> list[float]:
        moments = [self._leaves(part)]
        if _needs_order_or_verdict(part):
            moments.append(part.due - self._timing.lead)
        elif not part.ended:
            moments.append(part.due - self._timing.lead / 2)
        return moments

    def project(self, position: BeltPosition, now: float) -> list[BeltPart]:
        """Set each part's due time from the belt's position and speed.

        Returns the parts that have reached the ejector since the last call.
        """
        arrived = []
        for part in self:
            if part.target is None or part.arrived:
                continue
            if position.count is not None and position.distance(part.target) <= 0:
                part.arrived, part.due = True, min(part.due, now)
                arrived.append(part)
            else:
                part.due = position.moment(part.target) if position.count is not None else part.due
        self.busy.sort(key=due)  # parts without a count keep the due time of their trigger
        self.idle.sort(key=due)
        return arrived

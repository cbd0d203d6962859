"""The parts on the belt, in order of the moments at which they stand before the ejector, and when each of them needs something."""

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


def _to_order(part: BeltPart) -> bool:
    return part.verdict is None or (part.to_eject and not part.ordered and not part.held)


def _is_idle(part: BeltPart) -> bool:
    return part.ended and not part.to_eject and not part.challenge


class Belt:
    """``busy`` parts still need something; ``idle`` ones have passed, and only leave. Both are in order of due times.

    A fast line has many parts on its belt, and nearly all of them are idle: nothing but their leaving is looked for among them.
    """

    def __init__(self, timing: BeltTiming) -> None:
        self._timing = timing
        self.busy: list[BeltPart] = []
        self.idle: list[BeltPart] = []
        self._of: dict[int, list[BeltPart]] = {}

    def __len__(self) -> int:
        return len(self.busy) + len(self.idle)

    def __iter__(self) -> Iterator[BeltPart]:
        """All as they are now, in order of due times; they may be put elsewhere meanwhile."""
        return iter(list(heapq.merge(self.busy, self.idle, key=due)))

    def of(self, part_id: int) -> list[BeltPart]:
        """The parts with this id, in order of due times. One, unless an id came twice."""
        parts = self._of.get(part_id, [])
        return parts if len(parts) < 2 else sorted(parts, key=due)

    def add(self, part: BeltPart) -> None:
        """A part has come."""
        insort(self.idle if _is_idle(part) else self.busy, part, key=due)  # a repeated trigger comes after a younger one
        self._of.setdefault(part.id, []).append(part)

    def place(self, part: BeltPart) -> None:
        """Something has become of a part: keep it among the busy or the idle ones."""
        here, there = (self.busy, self.idle) if _is_idle(part) else (self.idle, self.busy)
        if part in here:
            here.remove(part)
            insort(there, part, key=due)

    def gone(self, now: float) -> list[BeltPart]:
        """The parts that have left the belt."""
        due_by_now = [part for parts in (self.busy, self.idle) for part in takewhile(lambda part: part.due <= now, parts)]
        return [part for part in due_by_now if now >= self._leaves(part)]

    def remove(self, part: BeltPart) -> None:
        """A part has left."""
        (self.busy if part in self.busy else self.idle).remove(part)
        same = self._of[part.id]
        same.remove(part)
        if not same:
            del self._of[part.id]

    def _leaves(self, part: BeltPart) -> float:
        if part.target is not None and not part.arrived:
            return math.inf
        return part.due + self._timing.confirm if part.ordered and not part.confirmed else part.due

    def next_due(self, *, lazy: bool) -> float | None:
        """When the first part needs something; None while none does. lazy: without idle ones, which only leave."""
        first, lead = math.inf, self._timing.lead
        for part in self.busy if lazy else self:
            if part.due - lead >= first:
                break  # nothing of it and of the others is due earlier
            first = min(first, *self._moments(part))
        return None if math.isinf(first) else first

    def next_order(self) -> float:
        """When the first part without a verdict, or to be ejected, has to be seen to; infinity for none."""
        return next((part.due - self._timing.lead for part in self.busy if _to_order(part)), math.inf)

    def _moments(self, part: BeltPart) -> list[float]:
        moments = [self._leaves(part)]
        if _to_order(part):
            moments.append(part.due - self._timing.lead)
        elif not part.ended:
            moments.append(part.due - self._timing.lead / 2)
        return moments

    def project(self, position: BeltPosition, now: float) -> list[BeltPart]:
        """Work out when each part comes to the ejector at this speed; returns those that stand before it since."""
        arrived = []
        for part in self:
            if part.target is None or part.arrived:
                continue
            if position.count is not None and position.distance(part.target) <= 0:
                part.arrived, part.due = True, min(part.due, now)
                arrived.append(part)
            else:
                part.due = position.moment(part.target) if position.count is not None else part.due
        self.busy.sort(key=due)  # a part whose count is not known goes by the time
        self.idle.sort(key=due)
        return arrived

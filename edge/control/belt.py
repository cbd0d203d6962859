"""The parts on the belt, in order of the moments at which they stand before the ejector."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator
from itertools import takewhile
from operator import attrgetter

from edge.control.parts import BeltPart

due = attrgetter("due")


def _is_idle(part: BeltPart) -> bool:
    return part.ended and not part.to_eject and not part.challenge


class Belt:
    """``busy`` parts still need something; ``idle`` ones have passed, and only leave. Both are in order of due times.

    A fast line has many parts on its belt, and nearly all of them are idle: nothing but their leaving is looked for among them.
    """

    def __init__(self) -> None:
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

    def sort(self) -> None:
        """The due times have changed."""
        self.busy.sort(key=due)
        self.idle.sort(key=due)

    def until(self, moment: float) -> list[BeltPart]:
        """The parts that are due by then."""
        return [part for parts in (self.busy, self.idle) for part in takewhile(lambda part: part.due <= moment, parts)]

    def remove(self, part: BeltPart) -> None:
        """A part has left."""
        (self.busy if part in self.busy else self.idle).remove(part)
        same = self._of[part.id]
        same.remove(part)
        if not same:
            del self._of[part.id]

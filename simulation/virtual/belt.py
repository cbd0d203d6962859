"""A belt in virtual time: where parts are, and what the PLC's program does with them. Pure, and simpler than
`Conveyor`: no messages.

Unlike `Conveyor` it changes its speed and stops. Positions are in "belt time", seconds of travel at nominal speed: a
part is at the ejector when the belt has moved on by the travel time since the camera, whatever its speed was meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PASS, REJECT, EJECT, RELEASE = range(4)  # codes of a verdict on the wire
RELEASED = (PASS, RELEASE)
SLACK = 1e-9  # s of belt time: rounding error of sums of floats


@dataclass(slots=True, eq=False)
class BeltItem:
    """A real part. centre: belt time at which it is at the ejector. truth: whether inspecting it gives PASS."""

    serial: int
    id: int
    triggered: float
    centre: float
    truth: bool
    verdict: int | None = None  # the last one that the PLC got
    firing: float | None = None  # belt time at which the ejector fires for it
    taken: bool = False  # the line opened a part for it
    passed: bool = False
    ejected: bool = False
    by_failsafe: bool = False
    outcome: str | None = None  # the line's final one
    cause: str | None = None


@dataclass
class VirtualBelt:
    """Parts between camera and ejector. Moments in s. Call ``move`` before anything else."""

    travel: float
    tolerance: float
    speed: float = 1.0
    time: float = 0.0  # belt time
    wrong_part: int = 0
    missed: int = 0
    items: list[BeltItem] = field(default_factory=list)  # in order of arrival
    _now: float = 0.0

    def move(self, now: float) -> None:
        """Move the belt on to ``now``, s."""
        self.time += (now - self._now) * self.speed
        self._now = now

    def put(self, item: BeltItem) -> None:
        """A part is in front of the camera."""
        self.items.append(item)

    def moment(self, time: float) -> float:
        """When the belt will reach a belt time at its present speed, s; infinity while it stands."""
        return self._now + (time - self.time) / self.speed if self.speed > 0 else float("inf")

    def stop(self) -> None:
        """The belt stops.

        REJECTs are timed by the clock, so the PLC drops those that it has; the fail-safe rule ejects their parts.
        """
        self.speed = 0.0
        for item in self.items:
            item.firing = None

    def find(self, id: int) -> BeltItem | None:
        """The newest part with that id on the belt."""
        return next((item for item in reversed(self.items) if item.id == id), None)

    def command(self, id: int, due: float) -> bool:
        """Take a REJECT that fires at ``due``, s. False if no part with that id is on the belt, or the belt stands."""
        at = self.time + max(0.0, due - self._now) * self.speed
        named = [item for item in self.items if item.id == id]
        if not named or self.speed == 0:
            return False
        min(named, key=lambda item: abs(item.centre - at)).firing = at
        return True

    def next_time(self) -> float:
        """The belt time at which `settle` has something to do next; infinity for an empty belt."""
        times = [item.firing for item in self.items[:3] if item.firing is not None]
        if self.items:
            first = self.items[0]
            times.append(first.centre if self.time < first.centre - SLACK else first.centre + self.tolerance)
        return min(times, default=float("inf"))

    def settle(self) -> list[BeltItem]:
        """Returns the parts that leave: ejected by a REJECT, ejected by the fail-safe rule, or passed."""
        left: list[BeltItem] = []
        for item in self.items[:3]:
            if item.firing is not None and item.firing <= self.time + SLACK:
                item.firing = None
                hit = min(self.items, key=lambda other: abs(other.centre - self.time))
                if abs(hit.centre - self.time) > self.tolerance + SLACK:
                    self.missed += 1
                    continue
                self.wrong_part += hit is not item
                hit.ejected = True
                self.items.remove(hit)
                left.append(hit)
        while self.items and self.time >= self.items[0].centre - SLACK:
            first = self.items[0]
            coming = first.firing is not None and first.firing <= first.centre + self.tolerance
            if first.verdict not in RELEASED and not coming:
                first.ejected = first.by_failsafe = True
            elif self.time >= first.centre + self.tolerance - SLACK:
                first.passed = True
            else:
                break
            left.append(self.items.pop(0))
        return left

"""What the simulated PLC's machine is like."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.base.errors import InputError


@dataclass(frozen=True)
class PlcSettings:
    """The machine. Raises InputError for a value outside its range.

    ``rate``: parts a second; ``parts``: how many, 0 until stopped; ``travel_ms``: camera to ejector; ``tolerance_ms``: how
    far off a part's centre the ejector may fire, default 40 % of the part pitch; ``jitter``: share of the pitch by which
    triggers vary; ``encoder_per_s``: encoder counts a second, None for triggers without; ``confirm``: send CONFIRM for
    ejected parts; ``noise``: probability that a sent frame or a received chunk is corrupted; ``start_timeout_s``: how
    long to wait for a line that does not become ready; ``baud``: of a real port; ``speeds``: (seconds, share of the nominal
    speed) from the start on, for a belt whose speed varies; ``by_encoder``: heartbeats have the encoder count;
    ``clear_s``: after so long in state fault the operator clears it, None for never.
    """

    rate: float = 10.0
    parts: int = 0
    travel_ms: float = 600.0
    tolerance_ms: float | None = None
    jitter: float = 0.0
    encoder_per_s: float | None = 1000.0
    first_part: int = 1
    confirm: bool = True
    noise: float = 0.0
    seed: int = 0
    start_timeout_s: float = 60.0
    baud: int = 115200
    speeds: tuple[tuple[float, float], ...] = ()
    by_encoder: bool = False
    clear_s: float | None = None

    def __post_init__(self) -> None:
        above_0 = "a finite number above 0"
        for name, good, expected in (
            ("rate", 0 < self.rate < math.inf, above_0), ("parts", self.parts >= 0, "0 or more"),
            ("travel_ms", 0 < self.travel_ms < math.inf, above_0), ("jitter", 0 <= self.jitter < 0.5, "0 to below 0.5"),
            ("tolerance_ms", self.tolerance_ms is None or 0 < self.tolerance_ms < math.inf, above_0),
            ("encoder_per_s", self.encoder_per_s is None or 0 < self.encoder_per_s < math.inf, above_0),
            ("first_part", 1 <= self.first_part < 1 << 32, "1 to 4294967295"), ("noise", 0 <= self.noise < 1, "0 to below 1"),
            ("start_timeout_s", self.start_timeout_s > 0, "a number above 0"), ("baud", self.baud > 0, above_0),
            ("speeds", all(0 < s < math.inf and -math.inf < share < math.inf for s, share in self.speeds), "(seconds above 0, share)"),
            ("by_encoder", not self.by_encoder or self.encoder_per_s is not None, "an encoder"),
        ):
            if not good:
                raise InputError(f"the PLC simulator's {name} cannot be used", got=getattr(self, name), expected=expected)

    @property
    def pitch_s(self) -> float:
        """Time from one part to the next, s."""
        return 1 / self.rate

    @property
    def tolerance_s(self) -> float:
        """How far off a part's centre the ejector still takes it, s."""
        return 0.4 * self.pitch_s if self.tolerance_ms is None else self.tolerance_ms / 1000

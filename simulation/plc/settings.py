"""Settings of the simulated PLC and its machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.base.errors import InputError


@dataclass(frozen=True)
class PlcSettings:
    """The machine. Raises InputError for a value outside its range."""

    rate: float = 10.0  # parts a second
    parts: int = 0  # end after so many; 0: run until stopped
    travel_ms: float = 600.0  # from the camera to the ejector
    tolerance_ms: float | None = None  # how far from a part's centre the ejector may fire; None: 40 % of the part pitch
    jitter: float = 0.0  # of the triggers, as a share of the pitch
    encoder_per_s: float | None = 1000.0  # encoder counts a second; None: triggers have no count
    first_part: int = 1  # id of the first part
    confirm: bool = True  # send CONFIRM for ejected parts
    noise: float = 0.0  # probability that a sent message or a received chunk is corrupted
    seed: int = 0  # of jitter and noise
    start_timeout_s: float = 60.0  # how long to wait for a line that does not become ready
    baud: int = 115200  # of a real port
    speeds: tuple[tuple[float, float], ...] = ()  # (seconds, share of the nominal speed), one after the other
    by_encoder: bool = False  # heartbeats have the encoder count
    clear_s: float | None = None  # the operator clears a fault after so long; None: never

    def __post_init__(self) -> None:
        above_0 = "a finite number above 0"
        for name, good, expected in (
            ("rate", 0 < self.rate < math.inf, above_0), ("parts", self.parts >= 0, "0 or more"),
            ("travel_ms", 0 < self.travel_ms < math.inf, above_0), ("jitter", 0 <= self.jitter < 0.5, "0 to below 0.5"),
            ("tolerance_ms", self.tolerance_ms is None or 0 < self.tolerance_ms < math.inf, above_0),
            ("encoder_per_s", self.encoder_per_s is None or 0 < self.encoder_per_s < math.inf, above_0),
            ("first_part", 1 <= self.first_part < 1 << 32, "1 to 4294967295"),
            ("noise", 0 <= self.noise < 1, "0 to below 1"),
            ("start_timeout_s", self.start_timeout_s > 0, "a number above 0"), ("baud", self.baud > 0, above_0),
            ("speeds", all(0 < s < math.inf and -math.inf < share < math.inf for s, share in self.speeds),
             "(seconds above 0, share)"),
            ("by_encoder", not self.by_encoder or self.encoder_per_s is not None, "an encoder"),
        ):
            if not good:
                raise InputError(f"the PLC simulator's {name} cannot be used", got=getattr(self, name),
                                 expected=expected)

    @property
    def pitch_s(self) -> float:
        """Time from one part to the next, s."""
        return 1 / self.rate

    @property
    def tolerance_s(self) -> float:
        """How far from a part's centre the ejector still hits it, s."""
        return 0.4 * self.pitch_s if self.tolerance_ms is None else self.tolerance_ms / 1000

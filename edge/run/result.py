"""The result of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LineResult:
    """Counts of the ledger, and what was measured."""

    ledger: dict[str, Any]
    wire: dict[str, int]  # counters of the PLC link
    # from a frame's exposure to its verdict's hand-over to line control, see `percentiles`
    latency_ms: dict[str, float]
    journal: dict[str, Any]
    realtime: bool  # whether line control had real-time priority
    frames: dict[str, int]  # frames that no part got, by reason

    def as_json(self) -> dict[str, Any]:
        """One dictionary, the ledger's counts first."""
        return {**self.ledger, "wire": self.wire, "latency_ms": self.latency_ms, "journal": self.journal,
                "realtime": self.realtime, "frames": self.frames}


def percentiles(times: Iterable[float]) -> dict[str, float]:
    """``p50``, ``p99`` and ``max``, rounded to 0.001; empty where nothing was measured."""
    ordered = sorted(times)
    if not ordered:
        return {}
    return {"p50": round(ordered[len(ordered) // 2], 3),
            "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
            "max": round(ordered[-1], 3)}

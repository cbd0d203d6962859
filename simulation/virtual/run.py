"""`lineside simulate` in virtual time."""

from __future__ import annotations

import time
from typing import Any

from edge.base.console import progress_bars
from simulation.scenario.file import ScenarioFile
from simulation.virtual.control import COUNTS
from simulation.virtual.line import VirtualLine


def simulate_virtual(file: ScenarioFile) -> dict[str, Any]:
    """Run a scenario in virtual time. Returns the counts; raises LinesideError where a rule does not hold."""
    line = VirtualLine(file.scenario)
    began = time.monotonic()
    with progress_bars() as show:
        line.run(lambda done, total: show("parts", done, total))
    seconds = time.monotonic() - began
    counts = line.counts
    figures = {name: counts[name] for name in COUNTS} | dict(sorted(counts.items()))
    return {"scenario": file.name, "about": file.scenario.about, "reconciled": True, "parts": file.scenario.count,
            **figures, "causes": dict(line.control.causes), "virtual_s": round(line.now, 1),
            "seconds": round(seconds, 2), "parts_per_s": round(file.scenario.count / seconds)}

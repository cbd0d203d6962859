"""A folder that tells the processes of a simulation which faults are active now.

``faults.json`` lists all faults. A file ``N.on`` exists while fault N (from 0) is active. ``happened.jsonl`` gets a
line for each part that a fault hit, and for the begin and the end of each fault.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class FaultBoard:
    """The folder, as one process sees it."""

    def __init__(self, folder: Path) -> None:
        """folder: has faults.json in it."""
        self.folder = folder
        self.faults: list[dict[str, Any]] = json.loads((folder / "faults.json").read_text())
        self._on: set[int] = set()
        self._looked = 0.0

    def look(self) -> None:
        """Read which faults are active; at most every 5 ms."""
        now = time.monotonic()
        if now - self._looked >= 0.005:
            self._looked = now
            self._on = {int(name[:-3]) for name in os.listdir(self.folder) if name.endswith(".on")}

    def on(self, *kinds: str) -> dict[str, Any] | None:
        """The first fault of these kinds that was active at the last `look`."""
        return next((self.faults[number] for number in sorted(self._on) if self.faults[number]["kind"] in kinds), None)

    def of_part(self, part: int, *kinds: str) -> dict[str, Any] | None:
        """The fault of these kinds that hits a part, if there is one; it is logged."""
        for number, fault in enumerate(self.faults):
            if fault["kind"] in kinds and fault["at_part"] <= part < fault["at_part"] + fault["count"]:
                self.happened(number, part)
                return fault
        return None

    def happened(self, number: int, part: int | None = None, event: str = "part") -> None:
        """Log that a fault hit a part, or began or ended."""
        record = json.dumps({"fault": number, "event": event, "part": part, "monotonic": time.monotonic()}) + "\n"
        descriptor = os.open(self.folder / "happened.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
                             0o644)
        try:
            os.write(descriptor, record.encode())
        finally:
            os.close(descriptor)

    def switch(self, number: int, on: bool) -> None:
        """Begin or end a fault."""
        if on:
            (self.folder / f"{number}.on").touch()
        else:
            (self.folder / f"{number}.on").unlink(missing_ok=True)
        self.happened(number, event="begins" if on else "ends")

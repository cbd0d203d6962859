"""Camera `custom`: its section of the line file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edge.cameras.live import LiveCamera
from edge.cameras.section import LiveSection


class CustomSection(LiveSection):
    """[camera] kind = "custom": a driver of your own"""

    key = "driver"
    kind: Literal["custom"]
    driver: str  # FILE.py:CLASS, see docs/cameras.md
    options: dict[str, Any] = Field(default_factory=dict)  # arguments of the class

    def make(self, folder: Path) -> LiveCamera:
        """The camera, not yet open. Raises CameraError if the driver cannot be loaded."""
        from edge.cameras.custom.loader import load_driver

        return LiveCamera(load_driver(self.driver, self.options, folder), self.trigger, self.window_ms / 1000)

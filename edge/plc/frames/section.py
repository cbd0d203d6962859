"""PLC link `frames`: its section of the line file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edge.plc.section import WireTimes
from edge.plc.serial_port import BITS, SerialSection
from edge.plc.wire import LENGTH, RETRY_AFTER


class FramesSection(SerialSection):
    """[plc] kind = "frames": messages with a checksum over a serial port"""

    link = "edge.plc.frames.link:FramesLink"
    kind: Literal["frames"]
    # slower, a command and its answer would take longer than RETRY_AFTER
    baud: int = Field(default=115200, ge=57_600, le=4_000_000)
    timing: Literal["line", "plc"] = "line"  # who times the ejector

    def wire_times(self) -> WireTimes:
        """A message each way; and a REJECT, which is repeated when its acknowledgement does not come."""
        message = 1000 * LENGTH * BITS / self.baud
        return WireTimes(2 * message, 1000 * RETRY_AFTER + 3 * message)

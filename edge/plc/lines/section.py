"""PLC link `lines`: its section of the line file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edge.plc.section import WireTimes
from edge.plc.serial_port import SerialSection


class LinesSection(SerialSection):
    """[plc] kind = "lines": the modem lines of a serial port, no messages"""

    link = "edge.plc.lines.link:LinesLink"
    has_encoder = False
    kind: Literal["lines"]
    trigger: Literal["rising", "falling"] = "rising"  # the edge of CTS that says a part is before the camera
    # a sensor behind the ejector; the PLC is ready; not connected
    dsr: Literal["confirm", "enable", "none"] = "confirm"
    dsr_active: Literal["high", "low"] = "high"
    # RTS while the ejector fires; low: it also fires while no program has the port open
    reject: Literal["high", "low"] = "low"
    ready: Literal["blink", "level"] = "blink"  # DTR while parts are accepted: it changes every 50 ms, or stays high
    gap_ms: float = Field(default=5, ge=0, le=1000)  # least time between two pulses
    debounce_ms: float = Field(default=2, ge=0, le=1000)  # CTS must stay so long to count as a trigger

    def wire_times(self) -> WireTimes:
        """A trigger counts after the debounce time.

        Verdicts are not sent, and a REJECT is a level, which cannot be lost.
        """
        return WireTimes(self.debounce_ms, 0.0)

"""PLC link `lines`: its section of the line file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edge.plc.section import PlcSection, WireTimes


class LinesSection(PlcSection):
    """[plc] kind = "lines": the modem lines of a serial port, no messages"""

    link = "edge.plc.lines.link:LinesLink"
    has_encoder = False
    kind: Literal["lines"]
    trigger: Literal["rising", "falling"] = "rising"  # the edge of CTS at which a part stands before the camera
    dsr: Literal["confirm", "enable", "none"] = "confirm"  # a sensor behind the ejector; the PLC takes part; not connected
    dsr_active: Literal["high", "low"] = "high"
    reject: Literal["high", "low"] = "low"  # RTS while the ejector fires; low: also while nobody holds the port
    ready: Literal["blink", "level"] = "blink"  # DTR while parts are taken: changes every 50 ms, or is high
    gap_ms: float = Field(default=5, ge=0, le=1000)  # least time between two pulses
    debounce_ms: float = Field(default=2, ge=0, le=1000)  # a trigger's line has to stay so long

    def wire_times(self) -> WireTimes:
        """A trigger counts when its line has stayed for the debounce time; verdicts are not told, and a REJECT is a level."""
        return WireTimes(self.debounce_ms, 0.0)

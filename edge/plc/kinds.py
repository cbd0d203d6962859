"""Which link a line file asks for. Each kind is imported when it is needed."""

from __future__ import annotations

from typing import Any

from edge.plc.link import PlcLink
from edge.plc.tape import LiveTape, Tape


def make_link(plc: dict[str, Any], tape: Tape | None = None) -> PlcLink:
    """The link of a ``[plc]`` section, given as a dictionary with its port made absolute; not open yet. tape: what it takes in through."""
    options = {key: value for key, value in plc.items() if key != "kind"}
    if plc["kind"] == "lines":
        from edge.plc.lines import LinesLink

        return LinesLink(**options, tape=tape or LiveTape())
    if plc["kind"] == "modbus":
        from edge.plc.modbus.link import ModbusLink

        return ModbusLink(**options, tape=tape or LiveTape())
    from edge.plc.frames import FramesLink

    return FramesLink(**options, tape=tape or LiveTape())

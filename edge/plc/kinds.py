"""The kinds of PLC link. A new one is a file with its section class and its link, and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edge.plc.link import PlcLink
from edge.plc.tape import LiveTape, Tape

LINKS = {
    "frames": "edge.plc.frames.section:FramesSection",
    "lines": "edge.plc.lines.section:LinesSection",
    "modbus": "edge.plc.modbus.section:ModbusSection",
}


def make_link(link: str, options: dict[str, Any], tape: Tape | None = None) -> PlcLink:
    """The link of a section, not opened yet. link, options: see `PlcSection`. tape: everything that the link takes in goes through it."""
    module, _, name = link.partition(":")
    made: PlcLink = getattr(import_module(module), name)(**options, tape=tape or LiveTape())
    return made

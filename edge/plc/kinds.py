"""The kinds of PLC link. A new kind is a file with its section class and its link, and one line in LINKS."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from edge.plc.link import PlcLink
from edge.plc.tape import LiveTape, Tape

if TYPE_CHECKING:
    from edge.base.finding import Finding

LINKS = {
    "frames": "edge.plc.frames.section:FramesSection",
    "lines": "edge.plc.lines.section:LinesSection",
    "modbus": "edge.plc.modbus.section:ModbusSection",
}


def make_link(link: str, options: dict[str, Any], tape: Tape | None = None) -> PlcLink:
    """A link, not open yet.

    link, options: see `PlcSection`. tape: everything that comes in from outside goes through it.
    """
    made: PlcLink = resolve_name(link)(**options, tape=tape or LiveTape())
    return made


def doctor(root: Path = Path("/")) -> list[Finding]:
    """The findings of all kinds, each once. ``root``: of the machine's file system."""
    return [*dict.fromkeys(finding for kind in LINKS for finding in resolve_name(LINKS[kind]).doctor(root))]

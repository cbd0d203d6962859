"""PLC link `modbus`: its section of the line file."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from edge.base.finding import Finding, package_version
from edge.plc.modbus.registers import FROM_PLC_LENGTH, GAP, HEADER, TO_PLC, TRIGGER
from edge.plc.section import WireTimes
from edge.plc.serial_port import BITS, SerialSection

READ_BYTES, WRITE_BYTES = 8 + 5, 9 + 8  # of a request and its response, without the registers


class ModbusSection(SerialSection):
    """[plc] kind = "modbus": the line is the master, the PLC a Modbus RTU slave"""

    link = "edge.plc.modbus.link:ModbusLink"
    kind: Literal["modbus"]
    # slower, a round of requests would take longer than a heartbeat
    baud: int = Field(default=115200, ge=38_400, le=4_000_000)
    parity: Literal["none", "even", "odd"] = "none"
    unit: int = Field(default=1, ge=1, le=247)  # the PLC's address on the bus
    # the first holding register of the block that the PLC writes
    read_at: int = Field(default=0, ge=0, le=0xFFFF - FROM_PLC_LENGTH)
    write_at: int = Field(default=100, ge=0, le=0xFFFF - TO_PLC.length)  # and of the block that the line writes
    poll_ms: float = Field(default=5, ge=1, le=50)  # from the start of a round of requests to the start of the next
    timeout_ms: float = Field(default=50, ge=10, le=150)  # of a request
    timing: Literal["line", "plc"] = "line"  # who times the ejector

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        if self.read_at < self.write_at + TO_PLC.length and self.write_at < self.read_at + FROM_PLC_LENGTH:
            raise ValueError(f"read_at ({self.read_at}) and write_at ({self.write_at}) further apart: the PLC's block "
                             f"has {FROM_PLC_LENGTH} registers, the line's {TO_PLC.length}")
        return self

    def wire_times(self) -> WireTimes:
        """The next round sees a trigger and reads it with another request; its verdict waits for the round after that.
        """
        byte = 1000 * (BITS + (self.parity != "none")) / self.baud
        look = byte * (READ_BYTES + 2 * (HEADER.length + 1)) + 1000 * GAP
        entry, write = byte * (READ_BYTES + 2 * TRIGGER.length) + 1000 * GAP, byte * (
            WRITE_BYTES + 2 * TO_PLC.length) + 1000 * GAP
        one_before_it = look + write
        return WireTimes(self.poll_ms + look + entry + self.poll_ms + look + write,
                         one_before_it + 2 * self.timeout_ms + 2 * (look + write))

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterable[Finding]:
        """Whether pymodbus is installed, and the serial ports."""
        if find_spec("pymodbus") is None:
            yield Finding("pymodbus", "improvable", "not installed",
                          "The PLC link `modbus` needs it: pip install 'lineside[modbus]'")
        else:
            yield Finding("pymodbus", "ok", package_version("pymodbus") or "installed")
        yield from super().doctor(root)

"""PLC link `modbus`: its section of the line file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from edge.plc.modbus.registers import FROM_PLC_LENGTH, GAP, HEADER, TO_PLC, TRIGGER
from edge.plc.section import BITS, PlcSection, WireTimes

READ_BYTES, WRITE_BYTES = 8 + 5, 9 + 8  # of a request and its response, beside the registers


class ModbusSection(PlcSection):
    """[plc] kind = "modbus": the line is the master, the PLC a Modbus RTU slave"""

    link = "edge.plc.modbus.link:ModbusLink"
    kind: Literal["modbus"]
    baud: int = Field(default=115200, ge=38_400, le=4_000_000)  # below that a round of requests takes longer than a heartbeat
    parity: Literal["none", "even", "odd"] = "none"
    unit: int = Field(default=1, ge=1, le=247)  # the PLC's
    read_at: int = Field(default=0, ge=0, le=0xFFFF - FROM_PLC_LENGTH)  # the first holding register of what the PLC says
    write_at: int = Field(default=100, ge=0, le=0xFFFF - TO_PLC.length)  # and of what the line says
    poll_ms: float = Field(default=5, ge=1, le=50)  # from the begin of a round to that of the next one
    timeout_ms: float = Field(default=50, ge=10, le=150)  # of a request
    timing: Literal["line", "plc"] = "line"  # who times the ejector

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        if self.read_at < self.write_at + TO_PLC.length and self.write_at < self.read_at + FROM_PLC_LENGTH:
            raise ValueError(f"read_at ({self.read_at}) and write_at ({self.write_at}) apart: what the PLC says takes {FROM_PLC_LENGTH} "
                             f"registers, what the line says {TO_PLC.length}")
        return self

    def wire_times(self) -> WireTimes:
        """A part's trigger is seen by the next poll and read by another request; its verdict waits for the poll after that."""
        byte = 1000 * (BITS + (self.parity != "none")) / self.baud
        look = byte * (READ_BYTES + 2 * (HEADER.length + 1)) + 1000 * GAP
        entry, write = byte * (READ_BYTES + 2 * TRIGGER.length) + 1000 * GAP, byte * (WRITE_BYTES + 2 * TO_PLC.length) + 1000 * GAP
        one_before_it = look + write
        return WireTimes(self.poll_ms + look + entry + self.poll_ms + look + write,
                         one_before_it + 2 * self.timeout_ms + 2 * (look + write))

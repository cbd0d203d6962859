"""Faults on the PLC's side: its port, what it receives and sends, its encoder, and the sensor at its ejector."""

from __future__ import annotations

import os
import random
from pathlib import Path

from simulation.plc.conveyor import Conveyor
from simulation.plc.port import Wire
from simulation.plc.wire import Frame, Kind
from simulation.scenario.fault_board import FaultBoard


class PlcFaults:
    """The faults that are active now, from a scenario's fault board."""

    def __init__(self, folder: Path | None, seed: int) -> None:
        """folder: of the board; None: nothing goes wrong."""
        self._board = None if folder is None else FaultBoard(folder)
        self._random = random.Random(seed)

    def look(self, wire: Wire, conveyor: Conveyor) -> None:
        """Begin and end what the board says. Call it in every turn."""
        if self._board is None:
            return
        self._board.look()
        wire.plug(self._board.on("unplug") is None)
        glitch = self._board.on("encoder-glitch")
        conveyor.encoder_error = glitch["by"] if glitch and self._random.random() < 0.5 else 0
        conveyor.sensor_sees = self._board.on("confirm-missing") is None

    def heard(self, data: bytes) -> bytes:
        """The part of what the line sent that arrives."""
        if self._board is None or not data:
            return data
        if self._board.on("deaf-plc"):
            return b""
        return self._disturbed(data)

    def takes(self, frame: Frame) -> bool:
        """Whether a message of the line gets through."""
        return not (frame.kind is Kind.LINE_ACK and self._chance("lost-acks"))

    def said(self, frame: Frame) -> bytes:
        """The bytes that go out for a message of the PLC; none if it is lost."""
        data = frame.encode()
        if self._board is None:
            return data
        if self._board.on("mute-plc") or (frame.kind is Kind.PLC_ACK and self._chance("lost-acks")):
            return b""
        return self._disturbed(data)

    def _chance(self, kind: str) -> bool:
        fault = self._board.on(kind) if self._board is not None else None
        return fault is not None and self._random.random() < fault["share"]

    def _disturbed(self, data: bytes) -> bytes:
        if self._chance("half-frames"):
            data = data[: len(data) - 12]
        if self._chance("garbage"):
            data = os.urandom(self._random.randrange(1, 40)) + data
        return data

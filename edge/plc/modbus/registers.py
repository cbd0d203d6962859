"""The register map of the PLC link `modbus`, and the rules of its mailbox and its rings, without a port. See docs/plc-modbus.md."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from edge.plc.wire import Ack, Settled, Type

GAP = 0.00175  # s of silence between an answer and the next request, as Modbus has it above 19200 baud
VERSION = 1  # of the map
RING = 8  # entries of each ring, each with its number
REWRITE_AFTER = 0.020  # s that a PLC has to execute a command before it is written again
GIVE_UP_AFTER = 1.0  # s after which a command that could not be settled is given up
BELT_MOVES, ENCODER = 1, 2  # bits of `flags`


class Block:
    """Fields that are read or written in one request. A number of 32 bit takes two registers, the high word first."""

    def __init__(self, *fields: tuple[str, int]) -> None:
        """fields: name and number of registers of each, in order."""
        self.fields: list[tuple[str, int, int]] = []  # name, offset from the block's first register, registers
        self.length = 0  # registers
        for name, words in fields:
            self.fields.append((name, self.length, words))
            self.length += words

    def decode(self, registers: Sequence[int]) -> dict[str, int]:
        """The numbers, unsigned, of as many fields as ``registers`` hold."""
        return {name: registers[offset] if words == 1 else registers[offset] << 16 | registers[offset + 1]
                for name, offset, words in self.fields if offset + words <= len(registers)}

    def encode(self, values: dict[str, int]) -> list[int]:
        """The registers of the fields that are given: the first ones of the block."""
        registers: list[int] = []
        for name, _, words in self.fields[:len(values)]:
            value = values[name]
            registers += [value & 0xFFFF] if words == 1 else [value >> 16 & 0xFFFF, value & 0xFFFF]
        return registers


HEADER = Block(("version", 1), ("session", 1), ("heartbeat", 1), ("flags", 1), ("clears", 1), ("clock", 2), ("encoder", 2),
               ("executed", 1), ("result", 1), ("triggers", 1), ("confirms", 1))
STATUS = Block(("heartbeat", 1), ("state", 1), ("session_seen", 1), ("triggers_taken", 1), ("confirms_taken", 1), ("refused", 1))
TO_PLC = Block(*((name, words) for name, _, words in STATUS.fields),
               ("type", 1), ("code", 1), ("part", 2), ("value", 2), ("time", 2), ("sequence", 1))
TRIGGER = Block(("number", 1), ("part", 2), ("time", 2), ("encoder", 2))
CONFIRM = Block(("number", 1), ("part", 2))
TRIGGERS_AT = HEADER.length  # of the first entry, from the PLC's first register
CONFIRMS_AT = TRIGGERS_AT + RING * TRIGGER.length
FROM_PLC_LENGTH = CONFIRMS_AT + RING * CONFIRM.length
TYPES = {Type.VERDICT: 1, Type.REJECT: 2, Type.FAULT: 3}


@dataclass
class Command:
    """One command. part: unsigned 32 bit; value: signed 32 bit; time: ms of the PLC's clock or an encoder count, unsigned 32 bit.

    made, expires: s of our clock; after ``expires`` it is not said any more.
    """

    type: Type
    code: int
    part: int
    value: int = 0
    time: int = 0
    made: float = 0.0
    expires: float = float("inf")
    sequence: int = 0

    def fields(self) -> dict[str, int]:
        """The fields of the map that say it."""
        return {"type": TYPES[self.type], "code": self.code, "part": self.part, "value": self.value, "time": self.time,
                "sequence": self.sequence}


class Mailbox:
    """The commands of the line, one at a time.

    The answer to a write says nothing: only the PLC's `executed` does, and only one that was read after the write. So what was executed
    is never said again, and what was not is said again under the same number until it is, or is given up.
    """

    def __init__(self) -> None:
        self.rewritten = 0
        self._waiting: deque[Command] = deque()
        self._under_way: Command | None = None
        self._written = float("-inf")
        self._looked = False  # `executed` was read since the last write
        self._sequence = 0
        self._ended: list[Settled] = []

    def start(self, sequence: int) -> None:
        """Go on from the sequence number that the PLC holds, which a line before this one may have written."""
        self._sequence = sequence

    def command(self, command: Command) -> None:
        """Queue a command. A verdict takes the place of one on the same part that was not written yet; a REJECT goes first."""
        if command.type is Type.VERDICT:
            self._waiting = deque(c for c in self._waiting if (c.type, c.part) != (Type.VERDICT, command.part))
        if command.type is Type.REJECT:
            first = next((i for i, c in enumerate(self._waiting) if c.type is not Type.REJECT), len(self._waiting))
            self._waiting.insert(first, command)
        else:
            self._waiting.append(command)

    def executed(self, sequence: int, result: int) -> None:
        """What the PLC says that it executed last, read after everything that was written so far."""
        command, self._looked = self._under_way, True
        if command is not None and command.sequence == sequence:
            self._under_way = None
            self._ended.append(Settled(command.type, command.part, Ack(result) if result in tuple(Ack) else Ack.UNKNOWN_PART))

    def next(self, now: float, executed: int) -> Command | None:
        """The command to write now: the one under way, if the PLC has not executed it, or the next one. executed: as last read."""
        command = self._under_way
        if command is not None:
            if not self._looked or now - self._written < REWRITE_AFTER:
                return None
            self.rewritten += 1
        else:
            if not self._waiting:
                return None
            command = self._under_way = self._waiting.popleft()
            self._sequence = self._sequence % 0xFFFF + 1  # 0 is what a PLC starts with
            if self._sequence == executed:
                self._sequence = self._sequence % 0xFFFF + 1
            command.sequence = self._sequence
        self._written, self._looked = now, False
        return command

    def expire(self, now: float) -> None:
        """Give up what is too late, or has waited for too long; of the one under way the PLC must have been heard, if it is late only."""
        command = self._under_way
        if command is not None and ((self._looked and now > command.expires) or now - command.made > GIVE_UP_AFTER):
            self._under_way = None
            self._ended.append(Settled(command.type, command.part, None))
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            if now > min(command.expires, command.made + GIVE_UP_AFTER):
                self._ended.append(Settled(command.type, command.part, None))
            else:
                self._waiting.append(command)

    def abandon(self) -> None:
        """The PLC began anew: what was told of its parts and its clock is void; a fault is still one."""
        commands = [*([self._under_way] if self._under_way is not None else []), *self._waiting]
        self._under_way = None
        self._waiting = deque(c for c in commands if c.type is Type.FAULT)
        self._ended += [Settled(c.type, c.part, None) for c in commands if c.type is not Type.FAULT]

    def ended(self) -> list[Settled]:
        """The ends of commands since this was last asked; ``ack`` is None for what was given up."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def busy(self) -> bool:
        """Whether a command is under way or waits."""
        return self._under_way is not None or bool(self._waiting)


def arrivals(known: int, written: int) -> tuple[list[int], int]:
    """The numbers of a ring's entries that are new, and how many were overwritten before they could be read.

    known, written: how many entries were read, and how many the PLC has written, modulo 65536. The nth entry is in slot (n - 1) % 8.
    """
    new = (written - known) & 0xFFFF
    lost = max(0, new - RING)
    return [(written - back) & 0xFFFF for back in range(new - lost - 1, -1, -1)], lost


def span(numbers: Sequence[int]) -> tuple[int, int]:
    """(first slot, slots) that hold these entries, and others where the ring's end is among them. 8 divides 65536: numbers may wrap."""
    slots = [(number - 1) % RING for number in numbers]
    return min(slots), max(slots) - min(slots) + 1

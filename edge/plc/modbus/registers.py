"""The register map of the PLC link `modbus`, and the rules of its mailbox and its rings, without a port. See
docs/plc-modbus.md.

The register `session` is a number that the PLC changes at each start. Outside of this map it is called the PLC's
connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from edge.plc.wire import Ack, Settled, Type

GAP = 0.00175  # s of silence between a response and the next request: Modbus requires it above 19200 baud
VERSION = 1  # of the map; checked with each reading
RING = 8  # entries of each ring
REWRITE_AFTER = 0.020  # s for the PLC to execute a command before it is written again
GIVE_UP_AFTER = 1.0  # s after which a command that was not executed is given up
BELT_MOVES, ENCODER = 1, 2  # bits of the register `flags`


class Block:
    """Fields that are read or written in one request. A 32-bit number takes two registers, the high word first."""

    def __init__(self, *fields: tuple[str, int]) -> None:
        """fields: (name, number of registers) of each, in order."""
        self.fields: list[tuple[str, int, int]] = []  # name, offset from the block's first register, registers
        self.length = 0  # registers
        for name, words in fields:
            self.fields.append((name, self.length, words))
            self.length += words

    def decode(self, registers: Sequence[int]) -> dict[str, int]:
        """The unsigned numbers of as many fields as ``registers`` hold."""
        return {name: registers[offset] if words == 1 else registers[offset] << 16 | registers[offset + 1]
                for name, offset, words in self.fields if offset + words <= len(registers)}

    def encode(self, values: dict[str, int]) -> list[int]:
        """The registers of the given fields, which are the first ones of the block."""
        registers: list[int] = []
        for name, _, words in self.fields[:len(values)]:
            value = values[name]
            registers += [value & 0xFFFF] if words == 1 else [value >> 16 & 0xFFFF, value & 0xFFFF]
        return registers


HEADER = Block(("version", 1), ("session", 1), ("heartbeat", 1), ("flags", 1), ("clears", 1), ("clock", 2),
               ("encoder", 2), ("executed", 1), ("result", 1), ("triggers", 1), ("confirms", 1))
STATUS = Block(("heartbeat", 1), ("state", 1), ("session_seen", 1), ("triggers_taken", 1), ("confirms_taken", 1),
               ("refused", 1))
TO_PLC = Block(*((name, words) for name, _, words in STATUS.fields),
               ("type", 1), ("code", 1), ("part", 2), ("value", 2), ("time", 2), ("sequence", 1))
TRIGGER = Block(("number", 1), ("part", 2), ("time", 2), ("encoder", 2))
CONFIRM = Block(("number", 1), ("part", 2))
TRIGGERS_AT = HEADER.length  # where the ring of triggers starts in the PLC's block
CONFIRMS_AT = TRIGGERS_AT + RING * TRIGGER.length
FROM_PLC_LENGTH = CONFIRMS_AT + RING * CONFIRM.length
TYPES = {Type.VERDICT: 1, Type.REJECT: 2, Type.FAULT: 3}


@dataclass
class Command:
    """A command of the line.

    part: unsigned 32 bit. value: signed 32 bit. time: ms of the PLC's clock or an encoder count, unsigned 32 bit. made,
    expires: s of our clock; the command is not written after ``expires``.
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
        """The command as fields of the map."""
        return {"type": TYPES[self.type], "code": self.code, "part": self.part, "value": self.value, "time": self.time,
                "sequence": self.sequence}


class Mailbox:
    """The line's commands, which are written one at a time.

    The response to a write does not prove that the PLC executed it. Only its register `executed` does, read after the
    write. So a command is written again under the same number until it was executed or is given up, and an executed
    command is not written again.
    """

    def __init__(self) -> None:
        self.rewritten = 0
        self._waiting: deque[Command] = deque()
        self._current: Command | None = None  # written, and not executed yet
        self._written = float("-inf")
        self._checked = False  # whether `executed` was read since the last write
        self._sequence = 0
        self._ended: list[Settled] = []

    def start(self, sequence: int) -> None:
        """Continue from the sequence number in the PLC's registers, which an earlier line may have written."""
        self._sequence = sequence

    def command(self, command: Command) -> None:
        """Queue a command. A verdict replaces one on the same part that was not written yet. A REJECT goes first."""
        if command.type is Type.VERDICT:
            self._waiting = deque(c for c in self._waiting if (c.type, c.part) != (Type.VERDICT, command.part))
        if command.type is Type.REJECT:
            first = next((i for i, c in enumerate(self._waiting) if c.type is not Type.REJECT), len(self._waiting))
            self._waiting.insert(first, command)
        else:
            self._waiting.append(command)

    def executed(self, sequence: int, result: int) -> None:
        """The PLC's last executed command and its result, read after the last write."""
        command, self._checked = self._current, True
        if command is not None and command.sequence == sequence:
            self._current = None
            self._ended.append(Settled(command.type, command.part, Ack(result) if result in tuple(Ack)
                                       else Ack.UNKNOWN_PART))

    def next(self, now: float, executed: int) -> Command | None:
        """The command to write now, or None: the current one again, or the next one.

        executed: the PLC's register, as last read.
        """
        command = self._current
        if command is not None:
            if not self._checked or now - self._written < REWRITE_AFTER:
                return None
            self.rewritten += 1
        else:
            if not self._waiting:
                return None
            command = self._current = self._waiting.popleft()
            self._sequence = self._sequence % 0xFFFF + 1  # not 0, which a PLC starts with
            if self._sequence == executed:
                self._sequence = self._sequence % 0xFFFF + 1
            command.sequence = self._sequence
        self._written, self._checked = now, False
        return command

    def expire(self, now: float) -> None:
        """Give up commands that are too late or have waited too long.

        A late current one may have been executed: look first.
        """
        command = self._current
        if command is not None and ((self._checked and now > command.expires) or now - command.made > GIVE_UP_AFTER):
            self._current = None
            self._ended.append(Settled(command.type, command.part, None))
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            if now > min(command.expires, command.made + GIVE_UP_AFTER):
                self._ended.append(Settled(command.type, command.part, None))
            else:
                self._waiting.append(command)

    def abandon(self) -> None:
        """The PLC restarted: give up all commands about its parts and its clock. Faults are still true."""
        commands = [*([self._current] if self._current is not None else []), *self._waiting]
        self._current = None
        self._waiting = deque(c for c in commands if c.type is Type.FAULT)
        self._ended += [Settled(c.type, c.part, None) for c in commands if c.type is not Type.FAULT]

    def ended(self) -> list[Settled]:
        """How commands ended since the last call; ``ack`` is None for those given up."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def busy(self) -> bool:
        """Whether a command was not executed yet."""
        return self._current is not None or bool(self._waiting)


def arrivals(known: int, written: int) -> tuple[list[int], int]:
    """The numbers of a ring's new entries, and how many entries were overwritten unread.

    known, written: how many entries were read, and how many the PLC has written, modulo 65536. Entry n is in slot (n -
    1) % 8.
    """
    new = (written - known) & 0xFFFF
    lost = max(0, new - RING)
    return [(written - back) & 0xFFFF for back in range(new - lost - 1, -1, -1)], lost


def span(numbers: Sequence[int]) -> tuple[int, int]:
    """(first slot, number of slots) of the slots to read for these entries.

    8 divides 65536, so the numbers may wrap.
    """
    slots = [(number - 1) % RING for number in numbers]
    return min(slots), max(slots) - min(slots) + 1

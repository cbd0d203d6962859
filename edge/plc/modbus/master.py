"""The Modbus side of the PLC link `modbus`: polls and writes the PLC's registers with pymodbus.

It is asynchronous; the link runs its event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import serial

from edge.part.events import BeltStopped, Clear, Event
from edge.plc.common import REOPEN_AFTER
from edge.plc.modbus import protocol_taped
from edge.plc.modbus.protocol_taped import SCHEME
from edge.plc.modbus.registers import (
    BELT_MOVES,
    CONFIRM,
    CONFIRMS_AT,
    ENCODER,
    GAP,
    HEADER,
    RING,
    STATUS,
    TO_PLC,
    TRIGGER,
    TRIGGERS_AT,
    VERSION,
    Block,
    Mailbox,
    arrivals,
    span,
)
from edge.plc.tape import Tape
from edge.plc.wire import PlcClock, Settled

if TYPE_CHECKING:
    from pymodbus.client import AsyncModbusSerialClient

HANDLERS = "edge.plc.modbus"  # the package in which pyserial looks for protocol_taped
PARITY = {"none": "N", "even": "E", "odd": "O"}


class Wiring(NamedTuple):
    """The keys of [plc] in the line file. parity: ``none``, ``even`` or ``odd``. poll, timeout: s."""

    port: str
    baud: int
    parity: str
    unit: int
    read_at: int
    write_at: int
    poll: float
    timeout: float


class Taken(NamedTuple):
    """How many entries of each ring were saved or refused since the PLC started; modulo 65536."""

    connection: int  # the PLC's register `session`
    triggers: int
    confirms: int
    refused: int


class TriggerRead(NamedTuple):
    """A trigger of the ring.

    number: its number. stood: when its part was before the camera, s of our clock. part 0: overwritten unread.
    """

    number: int
    part: int
    time: int
    encoder: int | None
    stood: float


class ConfirmRead(NamedTuple):
    """An entry of the ring of confirmations."""

    number: int
    part: int


class Restarted(NamedTuple):
    """The PLC or the line has started: the numbers continue from here."""

    taken: Taken


Item = TriggerRead | ConfirmRead | Restarted | Event | Settled


class Failed(Exception):
    """A request had no response, or a wrong one."""


class WrongRegisters(Failed):
    """The PLC responds, but does not have the registers that the line expects."""


class Master:
    """Polls the PLC and writes the commands of the mailbox. The link reads its attributes, and sets three of them."""

    def __init__(self, wiring: Wiring, notify: Callable[[], None], tape: Tape) -> None:
        """notify: called when something was added to the inbox."""
        self.mailbox = Mailbox()
        self.inbox: list[Item] = []
        self.taken = Taken(0, 0, 0, 0)  # set by the link: what line control has saved
        self.beats, self.state = 0, 0  # set by the link: its heartbeats so far, and the line's state
        self.encoder: tuple[int, float] | None = None  # the newest count, and its time, s
        self.heard = float("-inf")  # when the PLC's heartbeat was last seen to change
        self.reason = ""  # of the last failure
        self.written: list[int] = []  # the state's registers as the PLC has them; empty: not known
        self.clock = PlcClock()
        self.counts: Counter[str] = Counter(dict.fromkeys(
            ("timeouts", "out_of_step", "exceptions", "overwritten", "port_reopened"), 0))
        self._wiring, self._notify, self._tape, self._now = wiring, notify, tape, tape.now
        self._client: AsyncModbusSerialClient | None = None
        self._opened = False
        self._next_open = 0.0
        self._connection: int | None = None  # the PLC's register `session`
        self._triggers = self._confirms = 0  # how many entries of the rings were read
        self._last: dict[str, int] = {}  # the last header since the PLC's start
        self._odd = False
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL + 1)  # the counters have it

    async def run(self) -> None:
        """Poll for ever. Count failed requests and lost ports, and try again."""
        while True:
            start = self._now()
            try:
                await self.poll(start)
            except Failed as error:
                self.reason = str(error)
                if self._client is not None and not self._client.connected:
                    self._drop(f"{self._wiring.port}: the port is gone")
                else:
                    # lets a late response arrive, which would be taken for that of the next request
                    await asyncio.sleep(self._wiring.timeout)
            except Exception as error:  # pyserial and pymodbus raise many kinds when a port goes
                self._drop(f"{self._wiring.port}: {error}")
            self._settle()
            rest = 0.0 if self.mailbox.busy else start + self._wiring.poll - self._now()
            await asyncio.sleep(max(rest, GAP))

    async def poll(self, now: float) -> None:
        """One round: read what is new, then write. Raises Failed, or whatever a lost port raises."""
        if self._client is None and now >= self._next_open:
            await self._open(now)
        if self._client is None:
            return
        if self._connection is None:
            await self._begin()
        header = await self._read_header()
        self._take_header(header, self._now())
        await self._read_triggers(header)
        await self._read_confirms(header)
        self._settle()
        await self._write(header["executed"])

    def _put(self, *items: Item) -> None:
        if items:
            self.inbox.extend(items)
            self._notify()

    def _settle(self) -> None:
        self.mailbox.expire(self._now())
        self._put(*self.mailbox.ended())

    async def _open(self, now: float) -> None:
        from pymodbus.client import AsyncModbusSerialClient

        if HANDLERS not in serial.protocol_handler_packages:
            serial.protocol_handler_packages.append(HANDLERS)
        protocol_taped.tape = self._tape
        wiring = self._wiring
        self._next_open = now + REOPEN_AFTER
        client = AsyncModbusSerialClient(SCHEME + wiring.port, baudrate=wiring.baud, parity=PARITY[wiring.parity],
                                         timeout=wiring.timeout, retries=0, reconnect_delay=0)
        if not await client.connect():
            client.close()
            return
        self._client, self.written = client, []
        self.counts["port_reopened"] += self._opened
        self._opened = True

    def _drop(self, reason: str) -> None:
        self.close()
        self.reason, self.heard = reason, float("-inf")
        self._next_open = self._now() + REOPEN_AFTER
        self._notify()

    def close(self) -> None:
        """Close the port."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # of a port that is gone
                client.close()

    async def _read(self, address: int, count: int) -> list[int]:
        assert self._client is not None
        answer = await self._ask(self._client.read_holding_registers(address, count=count, device_id=self._wiring.unit))
        if answer.function_code != 3 or len(answer.registers) != count:
            raise self._out_of_step("a response to another request came")
        return answer.registers

    async def _read_header(self) -> dict[str, int]:
        self._odd = not self._odd  # a late response of the round before then has another length
        header = HEADER.decode(await self._read(self._wiring.read_at, HEADER.length + self._odd))
        if header["version"] != VERSION:
            raise WrongRegisters(f"the PLC has version {header['version']} of the register map, expected {VERSION}")
        return header

    async def _ask(self, request: Any) -> Any:
        """The response. It may be a late one to an earlier request, so the caller checks its kind and length."""
        from pymodbus.exceptions import ModbusIOException

        try:
            answer = await request
        except ModbusIOException as error:
            self.counts["timeouts"] += 1
            raise Failed(f"no answer within {1000 * self._wiring.timeout:.0f} ms") from error
        if answer.isError():
            self.counts["exceptions"] += 1
            raise WrongRegisters(f"the PLC refuses the registers: Modbus exception {answer.exception_code}")
        return answer

    def _out_of_step(self, reason: str) -> Failed:
        self.counts["out_of_step"] += 1
        return Failed(reason)

    async def _begin(self) -> None:
        """Continue where an earlier line stopped, if the PLC has not restarted since; otherwise with what the rings
        still hold.
        """
        earlier = TO_PLC.decode(await self._read(self._wiring.write_at, TO_PLC.length))
        await asyncio.sleep(GAP)
        header = await self._read_header()
        await asyncio.sleep(GAP)
        self.mailbox.start(earlier["sequence"])
        connection = header["session"]
        if earlier["session_seen"] == connection:
            self._restart(Taken(connection, earlier["triggers_taken"], earlier["confirms_taken"], earlier["refused"]))
        else:
            self._restart(Taken(connection, header["triggers"] - min(header["triggers"], RING),
                                header["confirms"] - min(header["confirms"], RING), 0))

    def _restart(self, taken: Taken) -> None:
        self._connection, self._triggers, self._confirms = taken.connection, taken.triggers, taken.confirms
        self.clock, self._last, self.taken = PlcClock(), {}, taken
        self._put(Restarted(taken))

    def _take_header(self, header: dict[str, int], now: float) -> None:
        if header["session"] != self._connection:
            self.mailbox.abandon()
            self._restart(Taken(header["session"], 0, 0, 0))
        last = self._last
        if last and (header["clock"] - last["clock"]) & 0x80000000:
            raise self._out_of_step(f"the PLC's clock went back and its register `session` stayed {header['session']}: "
                                    "a PLC must change it when it starts")
        self._last, self.reason = header, ""
        self.clock.heard(header["clock"], now)
        self.mailbox.executed(header["executed"], header["result"])
        if not last:
            last = {**header, "flags": BELT_MOVES}
        if last["heartbeat"] != header["heartbeat"]:
            self.heard = now
        if header["flags"] & ENCODER:
            self.encoder = (header["encoder"], self.clock.moment(header["clock"]))
        if last["flags"] & BELT_MOVES and not header["flags"] & BELT_MOVES:
            self._put(BeltStopped())
        if last["clears"] != header["clears"]:
            self._put(Clear())
        self._notify()

    async def _read_triggers(self, header: dict[str, int]) -> None:
        numbers, lost = arrivals(self._triggers, header["triggers"])
        if not numbers:
            return
        entries = await self._read_ring(TRIGGERS_AT, TRIGGER, numbers)
        first = numbers[0]
        self._put(*(TriggerRead((first - back) & 0xFFFF, 0, 0, None, 0.0) for back in range(lost, 0, -1)))
        self.counts["overwritten"] += lost
        for number, entry in zip(numbers, entries, strict=True):
            if entry["number"] != number:  # since the header was read
                self.counts["overwritten"] += 1
                self._put(TriggerRead(number, 0, 0, None, 0.0))
            else:
                encoder = entry["encoder"] if header["flags"] & ENCODER else None
                self._put(TriggerRead(number, entry["part"], entry["time"], encoder, self.clock.moment(entry["time"])))
        self._triggers = header["triggers"]

    async def _read_confirms(self, header: dict[str, int]) -> None:
        numbers, lost = arrivals(self._confirms, header["confirms"])
        if not numbers:
            return
        entries = await self._read_ring(CONFIRMS_AT, CONFIRM, numbers)
        seen = [ConfirmRead(number, entry["part"]) for number, entry in zip(numbers, entries, strict=True)
                if entry["number"] == number]
        self.counts["overwritten"] += lost + len(numbers) - len(seen)
        self._put(*seen)
        self._confirms = header["confirms"]

    async def _read_ring(self, start: int, block: Block, numbers: list[int]) -> list[dict[str, int]]:
        first, slots = span(numbers)
        await asyncio.sleep(GAP)
        registers = await self._read(self._wiring.read_at + start + first * block.length, slots * block.length)
        found = [block.decode(registers[slot * block.length:]) for slot in range(slots)]
        return [found[(number - 1) % RING - first] for number in numbers]

    def wanted(self) -> list[int]:
        """What the registers of the line's state should hold."""
        taken = self.taken
        return STATUS.encode({"heartbeat": self.beats, "state": self.state, "session_seen": taken.connection,
                              "triggers_taken": taken.triggers, "confirms_taken": taken.confirms,
                              "refused": taken.refused})

    async def _write(self, executed: int) -> None:
        command, registers = self.mailbox.next(self._now(), executed), self.wanted()
        if command is None and registers == self.written:
            return
        assert self._client is not None
        content = registers if command is None else TO_PLC.encode({**STATUS.decode(registers), **command.fields()})
        self.written = []  # not known until the response comes
        await asyncio.sleep(GAP)
        answer = await self._ask(self._client.write_registers(self._wiring.write_at, content,
                                                              device_id=self._wiring.unit))
        if answer.function_code != 16:
            raise self._out_of_step("a response to another request came")
        self.written = registers

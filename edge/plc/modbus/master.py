"""The Modbus side of the PLC link `modbus`: reads and writes the PLC's registers by pymodbus, in an asyncio loop that the link runs."""

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

HANDLERS = "edge.plc.modbus"  # where pyserial looks for protocol_taped
PARITY = {"none": "N", "even": "E", "odd": "O"}


class Wiring(NamedTuple):
    """Where the PLC is: port, baud, ``none``, ``even`` or ``odd`` parity, its unit number, its two blocks, and times in s."""

    port: str
    baud: int
    parity: str
    unit: int
    read_at: int
    write_at: int
    poll: float
    timeout: float


class Taken(NamedTuple):
    """How many entries of each ring were kept or refused, in which session of the PLC; modulo 65536."""

    session: int
    triggers: int
    confirms: int
    refused: int


class TriggerRead(NamedTuple):
    """A trigger of the ring. number: how many there are with it; stood: when, s of our clock; part 0: it was overwritten unread."""

    number: int
    part: int
    time: int
    encoder: int | None
    stood: float


class ConfirmRead(NamedTuple):
    """An entry of the ring of parts that were seen to leave."""

    number: int
    part: int


class Restarted(NamedTuple):
    """The PLC began a new session, or the line its first one: the numbers go on from here."""

    taken: Taken


Item = TriggerRead | ConfirmRead | Restarted | Event | Settled


class Failed(Exception):
    """A request was not answered, or not as it should be."""


class Mistaken(Failed):
    """The PLC answers, but it has not the registers that the line expects."""


class Master:
    """Polls the PLC, and says what the mailbox holds. Its attributes are the link's to read and, where said so, to set."""

    def __init__(self, wiring: Wiring, tell: Callable[[], None], tape: Tape) -> None:
        """tell: called when the inbox got something."""
        self.mailbox = Mailbox()
        self.inbox: list[Item] = []
        self.taken = Taken(0, 0, 0, 0)  # set by the link: what it has kept
        self.beats, self.state = 0, 0  # set by the link: how often it said that it lives, and its state
        self.encoder: tuple[int, float] | None = None  # the newest count, and when it was so
        self.heard = float("-inf")  # when the PLC's heartbeat was last seen to change
        self.reason = ""  # what was wrong last
        self.told: list[int] = []  # the state's registers as the PLC has them
        self.clock = PlcClock()
        self.counts: Counter[str] = Counter(dict.fromkeys(
            ("timeouts", "out_of_step", "exceptions", "overwritten", "port_reopened"), 0))
        self._wiring, self._tell, self._tape, self._now = wiring, tell, tape, tape.now
        self._client: AsyncModbusSerialClient | None = None
        self._opened = False
        self._next_open = 0.0
        self._session: int | None = None  # of the PLC
        self._triggers = self._confirms = 0  # how many entries of the rings were read
        self._last: dict[str, int] = {}  # the last header of this session
        self._odd = False
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL + 1)  # the counters say it

    async def run(self) -> None:
        """Poll for ever. A failed request or a lost port is counted, and tried again."""
        while True:
            start = self._now()
            try:
                await self.poll(start)
            except Failed as error:
                self.reason = str(error)
                if self._client is not None and not self._client.connected:
                    self._drop(f"{self._wiring.port}: the port is gone")
                else:
                    await asyncio.sleep(self._wiring.timeout)  # until a late answer has come, which nobody waits for any more
            except Exception as error:  # pyserial and pymodbus let out many kinds when a port goes
                self._drop(f"{self._wiring.port}: {error}")
            self._settle()
            rest = 0.0 if self.mailbox.busy else start + self._wiring.poll - self._now()
            await asyncio.sleep(max(rest, GAP))

    async def poll(self, now: float) -> None:
        """One round: hear what is new, and say what is. Raises Failed, or what a port raises that is gone."""
        if self._client is None and now >= self._next_open:
            await self._open(now)
        if self._client is None:
            return
        if self._session is None:
            await self._begin()
        header = await self._read_header()
        self._hear(header, self._now())
        await self._read_triggers(header)
        await self._read_confirms(header)
        self._settle()
        await self._write(header["executed"])

    def _put(self, *items: Item) -> None:
        if items:
            self.inbox.extend(items)
            self._tell()

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
        client = AsyncModbusSerialClient(SCHEME + wiring.port, baudrate=wiring.baud, parity=PARITY[wiring.parity], timeout=wiring.timeout,
                                         retries=0, reconnect_delay=0)
        if not await client.connect():
            client.close()
            return
        self._client, self.told = client, []
        self.counts["port_reopened"] += self._opened
        self._opened = True

    def _drop(self, reason: str) -> None:
        self.close()
        self.reason, self.heard = reason, float("-inf")
        self._next_open = self._now() + REOPEN_AFTER
        self._tell()

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
            raise self._out_of_step("an answer to another request came")
        return answer.registers

    async def _read_header(self) -> dict[str, int]:
        self._odd = not self._odd  # so that two answers after each other are told apart by their length
        header = HEADER.decode(await self._read(self._wiring.read_at, HEADER.length + self._odd))
        if header["version"] != VERSION:
            raise Mistaken(f"the PLC has version {header['version']} of the register map, expected {VERSION}")
        return header

    async def _ask(self, request: Any) -> Any:
        """The answer. A late one to an earlier request looks like it, so its kind and length have to be looked at."""
        from pymodbus.exceptions import ModbusIOException

        try:
            answer = await request
        except ModbusIOException as error:
            self.counts["timeouts"] += 1
            raise Failed(f"no answer within {1000 * self._wiring.timeout:.0f} ms") from error
        if answer.isError():
            self.counts["exceptions"] += 1
            raise Mistaken(f"the PLC refuses the registers: Modbus exception {answer.exception_code}")
        return answer

    def _out_of_step(self, reason: str) -> Failed:
        self.counts["out_of_step"] += 1
        return Failed(reason)

    async def _begin(self) -> None:
        """Go on where a line before this one stopped, if the PLC runs since then; else with what the rings still hold."""
        left = TO_PLC.decode(await self._read(self._wiring.write_at, TO_PLC.length))
        await asyncio.sleep(GAP)
        header = await self._read_header()
        await asyncio.sleep(GAP)
        self.mailbox.start(left["sequence"])
        session = header["session"]
        if left["session_seen"] == session:
            self._restart(Taken(session, left["triggers_taken"], left["confirms_taken"], left["refused"]))
        else:
            self._restart(Taken(session, header["triggers"] - min(header["triggers"], RING),
                                header["confirms"] - min(header["confirms"], RING), 0))

    def _restart(self, taken: Taken) -> None:
        self._session, self._triggers, self._confirms = taken.session, taken.triggers, taken.confirms
        self.clock, self._last, self.taken = PlcClock(), {}, taken
        self._put(Restarted(taken))

    def _hear(self, header: dict[str, int], now: float) -> None:
        if header["session"] != self._session:
            self.mailbox.abandon()
            self._restart(Taken(header["session"], 0, 0, 0))
        last = self._last
        if last and (header["clock"] - last["clock"]) & 0x80000000:
            raise self._out_of_step(f"the PLC's clock went back within its session {header['session']}; "
                                    f"when it starts, it has to take another session number")
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
        self._tell()

    async def _read_triggers(self, header: dict[str, int]) -> None:
        numbers, lost = arrivals(self._triggers, header["triggers"])
        if not numbers:
            return
        entries = await self._read_ring(TRIGGERS_AT, TRIGGER, numbers)
        first = numbers[0]
        self._put(*(TriggerRead((first - back) & 0xFFFF, 0, 0, None, 0.0) for back in range(lost, 0, -1)))
        self.counts["overwritten"] += lost
        for number, entry in zip(numbers, entries, strict=True):
            if entry["number"] != number:  # while it was on its way
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
        seen = [ConfirmRead(number, entry["part"]) for number, entry in zip(numbers, entries, strict=True) if entry["number"] == number]
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
        """The registers of the line's state as they should be."""
        taken = self.taken
        return STATUS.encode({"heartbeat": self.beats, "state": self.state, "session_seen": taken.session, "triggers_taken": taken.triggers,
                              "confirms_taken": taken.confirms, "refused": taken.refused})

    async def _write(self, executed: int) -> None:
        command, registers = self.mailbox.next(self._now(), executed), self.wanted()
        if command is None and registers == self.told:
            return
        assert self._client is not None
        said = registers if command is None else TO_PLC.encode({**STATUS.decode(registers), **command.fields()})
        self.told = []  # until it is certain
        await asyncio.sleep(GAP)
        answer = await self._ask(self._client.write_registers(self._wiring.write_at, said, device_id=self._wiring.unit))
        if answer.function_code != 16:
            raise self._out_of_step("an answer to another request came")
        self.told = registers

"""PLC link `modbus`: Modbus RTU with pymodbus; the line is the master.

docs/plc-modbus.md describes the register map.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import serial

from edge.base.errors import LinkError
from edge.part.events import (
    Confirm,
    Encoder,
    Event,
    LinkBack,
    LinkLost,
    OrderFailed,
    Report,
    Trigger,
    TriggerRefused,
    VerdictDelivered,
)
from edge.plc.common import LATE_BY, LINK_LOST_AFTER, PORT_ERRORS, TIME_LOST, TriggerTimes, verdict_numbers
from edge.plc.link import LineStatus
from edge.plc.modbus.event_loop import TapedLoop
from edge.plc.modbus.master import (
    ConfirmRead,
    Failed,
    Item,
    Master,
    Restarted,
    Taken,
    TriggerRead,
    Wiring,
    WrongRegisters,
)
from edge.plc.modbus.registers import Command
from edge.plc.tape import LiveTape, Tape
from edge.plc.wire import Ack, Settled, Type

CLOSE_WAIT = 0.2  # s for writing the last commands and the last state when the link is closed
CLOSE_STEP = 0.01  # s between two checks whether they were written


class ModbusLink:
    """The line's side of the register map: see `PlcLink`. Used by one thread.

    Modbus only runs while that thread is in ``open``, ``read_events`` or ``close``.
    """

    def __init__(self, port: str, baud: int = 115200, parity: str = "none", unit: int = 1, read_at: int = 0,
                 write_at: int = 100, poll_ms: float = 5, timeout_ms: float = 50, timing: str = "line",
                 tape: Tape | None = None) -> None:
        """The keys of ``[plc]`` in the line file."""
        self.room = 0
        self._tape: Tape = tape or LiveTape()
        self._now = self._tape.now
        self._wiring = Wiring(port, baud, parity, unit, read_at, write_at, poll_ms / 1000, timeout_ms / 1000)
        self._line_times = timing == "line"
        self._loop = TapedLoop(self._tape)
        self._loop.set_exception_handler(lambda *_: None)  # errors of a lost port, whose requests fail as well
        self._master = Master(self._wiring, self._stop, self._tape)
        self._polling: asyncio.Task[None] | None = None
        self._wake: int | None = None
        self._up = False
        self._times = TriggerTimes()
        self._returned = Taken(0, 0, 0, 0)  # what read_events returned, and so is saved when it is called again
        self._encoder: tuple[int, float] | None = None
        self._pending: list[Event] = []

    def open(self) -> None:
        """Open the port, and check the PLC's registers if it responds.

        Raises LinkError without pymodbus, when the port does not exist or another program has it open, or for wrong
        registers.
        """
        try:
            import pymodbus.client  # noqa: F401
        except ImportError as error:
            raise LinkError("the PLC link `modbus` needs pymodbus", got="no such package", expected="pymodbus",
                            next="Run: pip install 'lineside[modbus]'") from error
        name = self._wiring.port
        try:
            self._tape.take("probe", lambda: serial.Serial(name, self._wiring.baud, timeout=0, exclusive=True).close())
        except PORT_ERRORS as error:
            raise LinkError(f"cannot open the PLC's port {name}", got=str(error), expected="a free serial port",
                            next="Fix `port` under [plc] in the line file, or free the port.") from error
        with suppress(Failed, OSError):  # a PLC that does not respond yet is waited for
            try:
                self._loop.run_until_complete(self._master.poll(self._now()))
            except WrongRegisters as error:
                self._master.close()
                unit, read_at, write_at = self._wiring.unit, self._wiring.read_at, self._wiring.write_at
                raise LinkError(f"the PLC on {name}, unit {unit}, does not have the line's registers", got=str(error),
                                expected=f"the registers of docs/plc-modbus.md from {read_at} and from {write_at} on",
                                next="Fix `unit`, `read_at` and `write_at` under [plc] in the line file, or the PLC's "
                                "program.") from error

    def report(self, report: Report) -> None:
        """See `PlcLink`."""
        code, value = verdict_numbers(report)
        self._command(Command(Type.VERDICT, code, report.part, value))

    def fault(self, code: int, part: int = 0) -> None:
        """See `PlcLink`."""
        self._command(Command(Type.FAULT, code, part))

    def pulse(self, part: int, due: float, width_ms: int, count: int | None = None) -> None:
        """See `PlcLink`. ``due`` is sent as a time of the PLC's clock."""
        if not self._line_times:
            return
        if count is not None:
            self._command(Command(Type.REJECT, 1, part, width_ms, count & 0xFFFFFFFF))
            return
        moment = self._times.plc_time(part, due)
        if moment is None:
            self._pending.append(OrderFailed(part, TIME_LOST))
            return
        self._command(Command(Type.REJECT, 0, part, width_ms, moment, expires=due + LATE_BY))

    def _command(self, command: Command) -> None:
        command.made = self._now()
        self._master.mailbox.command(command)

    def heartbeat(self, status: LineStatus) -> None:
        """See `PlcLink`. The heartbeat that the PLC reads changes only by this call."""
        self._master.state = int(status)
        self._master.beats += 1

    def read_events(self, timeout: float, wake: int) -> list[Event]:
        """See `PlcLink`."""
        master = self._master
        if self._returned.connection == master.taken.connection:
            master.taken = self._returned
        if self._polling is None:
            self._polling = self._loop.create_task(master.run())
            self._polling.add_done_callback(lambda _: self._loop.stop())
        if self._wake != wake:
            if self._wake is not None:
                self._loop.remove_reader(self._wake)
            self._loop.add_reader(wake, self._loop.stop)
            self._wake = wake
        if self._up:
            timeout = min(timeout, max(0.0, master.heard + LINK_LOST_AFTER - self._now()))
        self._run(0.0 if self._pending or master.inbox else timeout)
        now = self._now()
        events, self._pending = self._pending, []
        heard = now - master.heard <= LINK_LOST_AFTER
        if heard and not self._up:
            events.append(LinkBack())
        inbox, master.inbox = master.inbox, []
        for item in inbox:
            events += self._event(item, now)
        if master.encoder is not self._encoder and master.encoder is not None:
            self._encoder = master.encoder
            events.append(Encoder(self._encoder[0], now - self._encoder[1]))
        if self._up and not heard:
            events.append(LinkLost(master.reason or f"no heartbeat for {1000 * LINK_LOST_AFTER:.0f} ms"))
        self._up = heard
        return events

    def _stop(self) -> None:
        if self._polling is not None:  # otherwise `open` runs the loop, to its end
            self._loop.stop()

    def _run(self, timeout: float) -> None:
        """Poll for ``timeout`` s, or until there is something to return."""
        assert self._polling is not None
        if timeout <= 0.0:
            self._turn()
        else:
            timer = self._loop.call_later(timeout, self._loop.stop)
            self._loop.run_forever()
            timer.cancel()
        if self._polling.done():
            self._polling.result()  # raises the error that ended it

    def _turn(self) -> None:
        """Do what can be done without waiting."""
        self._loop.stop()
        self._loop.run_forever()

    def _event(self, item: Item, now: float) -> list[Event]:
        if isinstance(item, Restarted):
            self._returned, self._times = item.taken, TriggerTimes()
            return []
        if isinstance(item, TriggerRead):
            return [self._trigger(item, now)]
        if isinstance(item, ConfirmRead):
            self._returned = self._returned._replace(confirms=item.number)
            return [Confirm(item.part)]
        if isinstance(item, Settled):
            return self._settled(item)
        return [item]

    def _trigger(self, read: TriggerRead, now: float) -> Event:
        self._returned = self._returned._replace(triggers=read.number)
        if self.room <= 0 or read.part == 0:
            self._returned = self._returned._replace(refused=(self._returned.refused + 1) & 0xFFFF)
            return TriggerRefused(read.part)
        self.room -= 1
        self._times.note(read.part, read.time, read.stood)
        return Trigger(read.part, read.encoder, now - read.stood)

    @staticmethod
    def _settled(settled: Settled) -> list[Event]:
        if settled.type is Type.VERDICT and settled.ack is Ack.DONE:
            return [VerdictDelivered(settled.part)]
        if settled.type is Type.REJECT and settled.ack is not Ack.DONE:
            return [OrderFailed(settled.part, "it was not executed" if settled.ack is None
                                else settled.ack.name.lower().replace("_", " "))]
        return []

    @property
    def idle(self) -> bool:
        """See `PlcLink`. While the PLC responds it must also have been written what was saved."""
        return not self._master.mailbox.busy and not self._master.inbox and not self._pending and (
            not self._up or self._all_written)

    @property
    def _all_written(self) -> bool:
        """Whether the PLC has the line's state and what was saved; not counting the newest heartbeat."""
        return self._returned == self._master.taken and self._master.written[1:] == self._master.wanted()[1:]

    def counters(self) -> dict[str, int]:
        """See `PlcLink`."""
        return {**self._master.counts, "rewritten": self._master.mailbox.rewritten}

    def close(self) -> None:
        """Write the last commands and the last state, for CLOSE_WAIT at most, and close the port."""
        if self._loop.is_closed():
            return
        deadline = self._now() + CLOSE_WAIT
        while self._up and (not self._all_written or self._master.mailbox.busy):
            if (rest := deadline - self._now()) <= 0:
                break
            self._run(min(rest, CLOSE_STEP))
        if self._polling is not None:
            while not self._polling.done():
                self._polling.cancel()  # repeatedly: up to Python 3.11 asyncio.wait_for may swallow a cancellation
                self._turn()
        self._master.close()
        self._loop.close()

"""PLC link `modbus`: Modbus RTU by pymodbus, the line is the master. The register map and its rules are docs/plc-modbus.md."""

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
from edge.plc.common import LATE_BY, LINK_LOST_AFTER, PORT_ERRORS, TriggerTimes, verdict_numbers
from edge.plc.link import LineStatus
from edge.plc.modbus.event_loop import TapedLoop
from edge.plc.modbus.master import ConfirmRead, Failed, Item, Master, Mistaken, Restarted, Taken, TriggerRead, Wiring
from edge.plc.modbus.registers import Command
from edge.plc.tape import LiveTape, Tape
from edge.plc.wire import Ack, Settled, Type

FAREWELL = 0.2  # s that the last commands and the last state have when the link is closed


class ModbusLink:
    """The line's side of the register map. Used by one thread; Modbus goes on while that is in ``open``, ``read_events`` or ``close``."""

    def __init__(self, port: str, baud: int = 115200, parity: str = "none", unit: int = 1, read_at: int = 0, write_at: int = 100,
                 poll_ms: float = 5, timeout_ms: float = 50, timing: str = "line", tape: Tape | None = None) -> None:
        """The keys of ``[plc]`` in the line file."""
        self.room = 0
        self._tape: Tape = tape or LiveTape()
        self._now = self._tape.now
        self._wiring = Wiring(port, baud, parity, unit, read_at, write_at, poll_ms / 1000, timeout_ms / 1000)
        self._line_times = timing == "line"
        self._loop = TapedLoop(self._tape)
        self._loop.set_exception_handler(lambda *_: None)  # of a port that is gone; the request then fails as well
        self._master = Master(self._wiring, self._stop, self._tape)
        self._polling: asyncio.Task[None] | None = None
        self._wake: int | None = None
        self._up = False
        self._times = TriggerTimes()
        self._kept = Taken(0, 0, 0, 0)  # what read_events gave, and so is kept when it is called again
        self._encoder: tuple[int, float] | None = None
        self._pending: list[Event] = []

    def open(self) -> None:
        """Open the port, and look at the PLC's registers if it answers.

        Raises LinkError without pymodbus, when the port does not exist or somebody else has it, or when the registers are others.
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
                            next="Mend `port` under [plc] in the line file, or free the port.") from error
        with suppress(Failed, OSError):  # one that is not there yet is waited for
            try:
                self._loop.run_until_complete(self._master.poll(self._now()))
            except Mistaken as error:
                self._master.close()
                raise LinkError(f"the PLC on {name}, unit {self._wiring.unit}, is not ready for the line", got=str(error),
                                expected=f"the registers of docs/plc-modbus.md from {self._wiring.read_at} and {self._wiring.write_at} on",
                                next="Mend `unit`, `read_at` and `write_at` under [plc] in the line file, or the PLC's program.") from error

    def report(self, report: Report) -> None:
        """Tell a verdict."""
        code, value = verdict_numbers(report)
        self._command(Command(Type.VERDICT, code, report.part, value))

    def fault(self, code: int, part: int = 0) -> None:
        """Tell a fault, or with code 0 that it is over."""
        self._command(Command(Type.FAULT, code, part))

    def pulse(self, part: int, due: float, width_ms: int, count: int | None = None) -> None:
        """Have the ejector fire: at ``due`` (s), told on the PLC's clock, or at an encoder's count."""
        if not self._line_times:
            return
        if count is not None:
            self._command(Command(Type.REJECT, 1, part, width_ms, count & 0xFFFFFFFF))
            return
        moment = self._times.plc_time(part, due)
        if moment is None:
            self._pending.append(OrderFailed(part, "its moment went with a restart; the PLC ejects it by the fail-safe rule"))
            return
        self._command(Command(Type.REJECT, 0, part, width_ms, moment, expires=due + LATE_BY))

    def _command(self, command: Command) -> None:
        command.made = self._now()
        self._master.mailbox.command(command)

    def heartbeat(self, status: LineStatus) -> None:
        """Say that the line lives: what is written to the PLC changes only when this was called."""
        self._master.state = int(status)
        self._master.beats += 1

    def read_events(self, timeout: float, wake: int) -> list[Event]:
        """What has come in; what the call before gave is told to the PLC as taken."""
        master = self._master
        if self._kept.session == master.taken.session:
            master.taken = self._kept
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
        if self._polling is not None:  # else `open` runs the loop, to its end
            self._loop.stop()

    def _run(self, timeout: float) -> None:
        """Poll for ``timeout`` s, or until there is something to tell."""
        assert self._polling is not None
        if timeout <= 0.0:
            self._turn()
        else:
            timer = self._loop.call_later(timeout, self._loop.stop)
            self._loop.run_forever()
            timer.cancel()
        if self._polling.done():
            self._polling.result()  # it ends only by an error

    def _turn(self) -> None:
        """What can be done without waiting."""
        self._loop.stop()
        self._loop.run_forever()

    def _event(self, item: Item, now: float) -> list[Event]:
        if isinstance(item, Restarted):
            self._kept, self._times = item.taken, TriggerTimes()
            return []
        if isinstance(item, TriggerRead):
            return [self._trigger(item, now)]
        if isinstance(item, ConfirmRead):
            self._kept = self._kept._replace(confirms=item.number)
            return [Confirm(item.part)]
        if isinstance(item, Settled):
            return self._settled(item)
        return [item]

    def _trigger(self, read: TriggerRead, now: float) -> Event:
        self._kept = self._kept._replace(triggers=read.number)
        if self.room <= 0 or read.part == 0:
            self._kept = self._kept._replace(refused=(self._kept.refused + 1) & 0xFFFF)
            return TriggerRefused(read.part)
        self.room -= 1
        self._times.note(read.part, read.time, read.stood)
        return Trigger(read.part, read.encoder, now - read.stood)

    @staticmethod
    def _settled(settled: Settled) -> list[Event]:
        if settled.type is Type.VERDICT and settled.ack is Ack.DONE:
            return [VerdictDelivered(settled.part)]
        if settled.type is Type.REJECT and settled.ack is not Ack.DONE:
            return [OrderFailed(settled.part, "it was not executed" if settled.ack is None else settled.ack.name.lower().replace("_", " "))]
        return []

    @property
    def idle(self) -> bool:
        """Whether every command was executed or given up, and the PLC was told what was taken, if it is heard."""
        return not self._master.mailbox.busy and not self._master.inbox and not self._pending and (not self._up or self._told)

    @property
    def _told(self) -> bool:
        """Whether the PLC knows the line's state, and what was taken."""
        return self._kept == self._master.taken and self._master.told[1:] == self._master.wanted()[1:]

    def counters(self) -> dict[str, int]:
        """What went wrong with requests so far."""
        return {**self._master.counts, "rewritten": self._master.mailbox.rewritten}

    def close(self) -> None:
        """Write the last commands and the last state, for 0.2 s at most, and close the port."""
        if self._loop.is_closed():
            return
        deadline = self._now() + FAREWELL
        while self._up and not (self._told and not self._master.mailbox.busy) and (rest := deadline - self._now()) > 0:
            self._run(min(rest, 0.01))
        if self._polling is not None:
            while not self._polling.done():
                self._polling.cancel()  # more than once: asyncio.wait_for swallows one, up to Python 3.11
                self._turn()
        self._master.close()
        self._loop.close()

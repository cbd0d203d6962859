"""The runtime's side of line control, which is a process of its own and may die and come back."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge.base.errors import LinkError
from edge.line_control.messages import Channel, Done, State, Told, Welcome, Written
from edge.line_control.parts import Ledger
from edge.part.events import (
    Alarm,
    Challenge,
    Challenged,
    Clear,
    Ended,
    Expose,
    FaultOver,
    PartVerdict,
    RuntimeReady,
    Stop,
)

POLL = 0.05  # s
CHALLENGE = 60.0  # s that the next part has to leave the belt in
CONNECT = 10.0  # s that line control has to answer in when the line starts


class ControlClient:
    """Hands verdicts to line control, and what that says to the callbacks, which run in a thread of this class."""

    def __init__(self, address: Path, *, expose: Callable[[Expose], None], ended: Callable[[Ended, object], None],
                 alarm: Callable[[str], None]) -> None:
        """address: of the supervisor's socket. ended: gets an outcome and the ``info`` that came with the verdict.

        Raises LinkError when line control does not answer.
        """
        self.ledger, self.wire, self.realtime = Ledger(), dict[str, int](), False
        self._address = str(address)
        self._expose, self._ended, self._alarm = expose, ended, alarm
        self._lock = threading.Lock()  # over the next three
        self._info: dict[int, object] = {}  # of the parts that were exposed, by trigger; until their outcome
        self._faults: dict[int, str] = {}  # code -> text
        self._done, self._stopping = threading.Event(), threading.Event()
        self._ready = False
        self._challenged: Challenged | None = None
        channel = self._connect()
        if channel is None:
            raise LinkError("line control does not answer", got=f"nothing for {CONNECT:g} s")
        self._channel = channel
        self._thread = threading.Thread(target=self._loop, name="line-control", daemon=True)

    def _connect(self) -> Channel | None:
        """Line control welcomes who connects as soon as it runs; the supervisor's socket keeps the connection until then.

        Returns None where it does not come, and raises LinkError where there is no supervisor.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(self._address)
        except OSError as error:
            connection.close()
            raise LinkError("line control cannot be reached", got=error.strerror) from error
        channel, deadline = Channel(connection), time.monotonic() + CONNECT
        while time.monotonic() < deadline and not channel.closed:
            select.select([channel], [], [], POLL)
            for message in channel.receive(1):
                assert isinstance(message, Welcome)
                self.realtime, self._session = message.realtime, message.session
                if message.why_not:
                    self._alarm(f"line control runs with {message.why_not}: rejects may be late")
                return channel
        channel.close()
        return None

    def start(self) -> None:
        """From now on triggers are taken."""
        self._thread.start()
        self._ready = True
        self._send(RuntimeReady())

    def _send(self, message: object) -> None:
        with self._lock:
            self._channel.send(message)

    def flush(self) -> None:
        """Hand over the verdicts that wait. Any thread."""
        with self._lock:
            self._channel.flush()

    def verdict(self, verdict: PartVerdict, info: object) -> None:
        """Hand a verdict over with the next `flush`. Any thread. One on a part that has its outcome already is dropped there."""
        with self._lock:
            if verdict.trigger in self._info:  # otherwise the part has its outcome, and nothing would remove the info again
                self._info[verdict.trigger] = info
            self._channel.put(verdict)

    def fault(self, code: int, text: str) -> None:
        """Tell the PLC and the operator of a fault, once until it is over. Any thread."""
        with self._lock:
            self._faults[code] = text
            self._channel.send(Alarm(code, text))

    def fault_over(self, code: int) -> None:
        """Tell the PLC that a fault is over, if it was told of it. Any thread."""
        with self._lock:
            self._faults.pop(code, None)
            self._channel.send(FaultOver(code))

    def written(self, outcomes: list[tuple[str, int]]) -> None:
        """The journal has the outcomes of these (session, trigger). Any thread."""
        self._send(Written([trigger for session, trigger in outcomes if session == self._session]))

    def clear(self) -> None:
        """A person has seen to the faults that stopped the line. Any thread."""
        self._send(Clear())

    def challenge(self) -> str:
        """Let the line prove that the next part is ejected; waits for that. Any thread. Raises LinkError where it is not."""
        self._challenged = None
        self._send(Challenge())
        deadline = time.monotonic() + CHALLENGE
        while self._challenged is None and time.monotonic() < deadline and not self._done.wait(POLL):
            pass
        if (result := self._challenged) is None:
            raise LinkError("the challenge has no result", got=f"no part that has left the belt within {CHALLENGE:g} s",
                            next="The next part is still taken for the challenge.")
        if not result.passed:
            raise LinkError(result.text, expected="REJECT, commanded, seen to leave", next="Do not rely on the line before this is mended.")
        return result.text

    def stop(self) -> None:
        """End every open part; returns at once. May be called from a signal handler."""
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether line control has ended."""
        return self._done.is_set() or (timeout != 0 and self._done.wait(timeout))

    def close(self) -> None:
        """Line control sees the end of the file."""
        self._done.set()
        if self._ready:
            self._thread.join(1.0)
        with self._lock:
            self._channel.close()

    def _loop(self) -> None:
        while not self._done.is_set():
            select.select([self._channel], [], [], POLL)
            if self._stopping.is_set():
                self._send(Stop())
            with self._lock:
                self._channel.flush()
                messages, closed = self._channel.receive(), self._channel.closed
            for message in messages:
                self._take(message)
            if closed and not self._done.is_set():
                self._return()

    def _take(self, message: object) -> None:
        if isinstance(message, Expose):
            with self._lock:
                self._info[message.trigger] = None
            self._expose(message)
        elif isinstance(message, Ended):
            with self._lock:
                info = self._info.pop(message.trigger, None)
            self._ended(message, info)
        elif isinstance(message, Told):
            self._alarm(message.text)
        elif isinstance(message, State):
            self.ledger, self.wire = message.ledger, message.wire
        elif isinstance(message, Challenged):
            self._challenged = message
        elif isinstance(message, Done):
            self._done.set()

    def _return(self) -> None:
        """Line control died. The next one knows the parts, but not the faults."""
        self._alarm("line control died; the parts on the belt are not inspected")
        try:
            channel = self._connect()
        except LinkError:  # the supervisor is gone as well
            self._done.set()
            return
        if channel is None:
            return  # try again
        with self._lock:  # all at once: a fault that ends meanwhile must end after it was told
            self._channel.close()
            self._channel = channel
            channel.send(RuntimeReady())
            for code, text in self._faults.items():
                channel.send(Alarm(code, text))

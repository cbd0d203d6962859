"""The runtime's client of line control, which is a process of its own and may die and come back."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge.base.errors import LinkError
from edge.line_control.messages import Channel, ControlEnded, Counts, Hello, JournalWritten, OperatorMessage
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

MESSAGE_WAIT = 0.05  # s for a message of line control, before the thread looks whether the line is to stop
CHALLENGE_WAIT = 60.0  # s for the challenge part to leave the belt
HELLO_WAIT = 10.0  # s for line control to answer a connection


class ControlClient:
    """Sends verdicts and faults to line control, and calls back with what it answers, in a thread of its own.

    The runtime's threads and that thread share the channel, the parts on the belt, the active faults and the
    challenge's result: everything below `_lock` is read and changed under it. Callbacks run without it.
    """

    def __init__(self, address: Path, *, expose: Callable[[Expose], None], ended: Callable[[Ended, object], None],
                 alarm: Callable[[str], None]) -> None:
        """address: the supervisor's socket. ended: called with an outcome and the ``info`` given with the part's
        verdict.

        Raises LinkError when line control does not answer.
        """
        self.ledger, self.wire, self.realtime = Ledger(), dict[str, int](), False
        self._run_id = ""
        self._address = str(address)
        self._expose, self._ended, self._alarm = expose, ended, alarm
        self._finished, self._stopping = threading.Event(), threading.Event()
        self._started = False
        self._lock = threading.Lock()
        self._challenge_changed = threading.Condition(self._lock)
        self._challenge_result: Challenged | None = None
        self._info: dict[int, object] = {}  # trigger -> info, of each exposed part until its outcome
        self._faults: dict[int, str] = {}  # code -> text, of each active fault
        channel = self._connect()
        if channel is None:
            raise LinkError("line control does not answer", got=f"nothing for {HELLO_WAIT:g} s")
        self._channel = channel
        self._thread = threading.Thread(target=self._loop, name="line-control", daemon=True)

    def _connect(self) -> Channel | None:
        """A connection that line control has answered; None if it did not answer in time.

        The supervisor's socket holds the connection until a line control is there to accept it. Raises LinkError
        without a supervisor.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(self._address)
        except OSError as error:
            connection.close()
            raise LinkError("line control cannot be reached", got=error.strerror) from error
        channel, deadline = Channel(connection), time.monotonic() + HELLO_WAIT
        while time.monotonic() < deadline and not channel.closed:
            select.select([channel], [], [], MESSAGE_WAIT)
            for message in channel.receive(1):
                assert isinstance(message, Hello)
                self.realtime, self._run_id = message.realtime, message.run_id
                if message.why_not:
                    self._alarm(f"line control runs with {message.why_not}: rejects may be late")
                return channel
        channel.close()
        return None

    def start(self) -> None:
        """Tell line control that the runtime is ready: it takes triggers from now on."""
        self._thread.start()
        self._started = True
        self._send(RuntimeReady())

    def _send(self, message: object) -> None:
        with self._lock:
            self._channel.send(message)

    def flush(self) -> None:
        """Send the verdicts that wait. Any thread."""
        with self._lock:
            self._channel.flush()

    def verdict(self, verdict: PartVerdict, info: object) -> None:
        """Leave a verdict for the next `flush`. Any thread. info: given to ``ended`` with the part's outcome."""
        with self._lock:
            # otherwise the part has its outcome already, and the info would stay for ever
            if verdict.trigger in self._info:
                self._info[verdict.trigger] = info
            self._channel.put(verdict)

    def fault(self, code: int, text: str) -> None:
        """Report a fault to the PLC and the operator; they see it once until it is over. Any thread."""
        with self._lock:
            self._faults[code] = text
            self._channel.send(Alarm(code, text))

    def fault_over(self, code: int) -> None:
        """Report that a fault is over, if it was active. Any thread."""
        with self._lock:
            self._faults.pop(code, None)
            self._channel.send(FaultOver(code))

    def written(self, outcomes: list[tuple[str, int]]) -> None:
        """The journal has the outcomes of these (run id, trigger). Any thread."""
        self._send(JournalWritten([trigger for run_id, trigger in outcomes if run_id == self._run_id]))

    def clear(self) -> None:
        """A person has dealt with the faults that stopped the line. Any thread."""
        self._send(Clear())

    def challenge(self) -> str:
        """Make the next part a challenge part, and wait until it has left the belt. Any thread.

        Returns what happened to it. Raises LinkError if it was not rejected, ejected and confirmed, or did not come in
        time.
        """
        with self._challenge_changed:
            self._challenge_result = None
            self._channel.send(Challenge())
            self._challenge_changed.wait_for(lambda: self._challenge_result is not None or self._finished.is_set(),
                                             CHALLENGE_WAIT)
            result = self._challenge_result
        if result is None:
            raise LinkError("the challenge has no result",
                            got=f"no part that left the belt within {CHALLENGE_WAIT:g} s",
                            next="The next part still counts as the challenge part.")
        if not result.passed:
            raise LinkError(result.text, expected="REJECT, commanded, seen to leave",
                            next="Do not rely on the line until this is fixed.")
        return result.text

    def stop(self) -> None:
        """Make line control end every open part. Returns at once; safe in a signal handler."""
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until line control has ended. Returns whether it has."""
        return self._finished.is_set() or (timeout != 0 and self._finished.wait(timeout))

    def close(self) -> None:
        """Close the connection, which line control notices."""
        self._finish()
        if self._started:
            self._thread.join(1.0)
        with self._lock:
            self._channel.close()

    def _finish(self) -> None:
        with self._challenge_changed:
            self._finished.set()
            self._challenge_changed.notify_all()

    def _loop(self) -> None:
        while not self._finished.is_set():
            select.select([self._channel], [], [], MESSAGE_WAIT)
            if self._stopping.is_set():
                self._send(Stop())
            with self._lock:
                self._channel.flush()
                messages, closed = self._channel.receive(), self._channel.closed
            for message in messages:
                self._take(message)
            if closed and not self._finished.is_set():
                self._reconnect()

    def _take(self, message: object) -> None:
        if isinstance(message, Expose):
            with self._lock:
                self._info[message.trigger] = None
            self._expose(message)
        elif isinstance(message, Ended):
            with self._lock:
                info = self._info.pop(message.trigger, None)
            self._ended(message, info)
        elif isinstance(message, OperatorMessage):
            self._alarm(message.text)
        elif isinstance(message, Counts):
            self.ledger, self.wire = message.ledger, message.wire
        elif isinstance(message, Challenged):
            with self._challenge_changed:
                self._challenge_result = message
                self._challenge_changed.notify_all()
        elif isinstance(message, ControlEnded):
            self._finish()

    def _reconnect(self) -> None:
        """Line control died.

        The restarted one knows the parts on the belt from their file, but not the runtime's faults.
        """
        self._alarm("line control died; the parts on the belt are not inspected")
        try:
            channel = self._connect()
        except LinkError:  # the supervisor is gone as well
            self._finish()
            return
        if channel is None:
            return  # the loop tries again
        with self._lock:  # all at once, so that a fault that ends meanwhile is reported before it is over
            self._channel.close()
            self._channel = channel
            channel.send(RuntimeReady())
            for code, text in self._faults.items():
                channel.send(Alarm(code, text))

"""The runtime's client of line control, where its threads meet. Line control is a socket of the test."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.line_control.client import ControlClient
from edge.line_control.messages import Channel, Hello
from edge.part.events import Alarm, Ended, Expose, FaultOver, PartVerdict
from edge.part.verdict import Verdict

PATIENCE = 0.2  # s that a thread gets to slip in between two steps; one that waits for a lock cannot


class Control:
    """Line control's end of the socket."""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "control"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.address))
        self._listener.listen(2)
        self._channels: list[Channel] = []
        self.accept = threading.Thread(target=self._accept, daemon=True)
        self.accept.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._channels.append(Channel(connection))
            self._channels[-1].send(Hello("run", True))

    def received(self) -> list[object]:
        """What the newest connection has received."""
        select.select([self._channels[-1]], [], [], 1.0)
        return self._channels[-1].receive()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def control(tmp_path) -> Iterator[Control]:
    made = Control(tmp_path)
    yield made
    made.close()


class Interleaved(dict[int, object]):
    """A dictionary that lets another thread run ``between`` as soon as it has been asked for something."""

    def __init__(self, content: dict[int, object], between) -> None:
        super().__init__(content)
        self._thread = threading.Thread(target=between, daemon=True)
        self._asked = False

    def _slip_in(self) -> None:
        if not self._asked:
            self._asked = True
            self._thread.start()
            self._thread.join(PATIENCE)

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self._slip_in()
        return found

    def items(self):
        found = list(super().items())
        self._slip_in()
        return found

    def join(self) -> None:
        self._thread.join(5)
        assert not self._thread.is_alive()


def test_a_verdict_that_meets_the_outcome_of_its_part_leaves_nothing_behind(control):
    """The runtime gives a verdict while line control's thread takes the part's outcome: what is kept for it must go."""
    outcomes: list[tuple[Ended, object]] = []
    client = ControlClient(control.address, expose=lambda _: None, ended=lambda ended,
                           info: outcomes.append((ended, info)), alarm=lambda _: None)
    client._take(Expose(7, None, 1, 0.0))
    ended = Ended(7, Verdict.PASS, None, 0.5, None, 0.0, 0.1, 1, "run")
    client._info = kept = Interleaved(client._info, lambda: client._take(ended))
    client.verdict(PartVerdict(7, Verdict.PASS, None, 0.5, 1), "a frame")
    kept.join()
    assert [outcome for outcome, _ in outcomes] == [ended]
    assert dict(kept) == {}, "kept for ever"
    client.close()


def test_a_fault_that_ends_while_line_control_comes_back_is_not_told_to_it_afterwards(control):
    client = ControlClient(control.address, expose=lambda _: None, ended=lambda *_: None, alarm=lambda _: None)
    client.fault(1, "the camera is gone")
    client._faults = told = Interleaved(client._faults, lambda: client.fault_over(1))  # type: ignore[assignment]
    client._reconnect()
    told.join()
    received: list[object] = []
    for _ in range(10):
        received += control.received() if FaultOver(1) not in received else []
    about_it = [message for message in received if isinstance(message, (Alarm, FaultOver))]
    assert about_it[-1] == FaultOver(1), about_it
    client.close()

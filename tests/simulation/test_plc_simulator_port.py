"""The PLC simulator: its loop through a real pty, and its log."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import serial

from edge.base.errors import LinkError
from simulation.plc.settings import PlcSettings
from simulation.plc.simulator import _Log, simulate
from simulation.plc.wire import COMMANDS, FROM_PLC, Frame, Inbox, Kind, Outbox, Reader

LINE = 0xABCD  # the line's session
PASS, BAD = range(2)


class Line(threading.Thread):
    """A small line: passes all parts but every fifth, whose REJECT it sends 100 ms ahead, repeated like every command.
    """

    def __init__(self, link: Path, travel_s: float) -> None:
        super().__init__(daemon=True)
        self.link, self.travel_s, self.stopping = link, travel_s, False

    def run(self) -> None:
        # As the simulator does: on a busy machine the test would else measure who gets the processor.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(40))
        while not self.link.exists():
            time.sleep(0.005)
        with serial.Serial(str(self.link), timeout=0.001,
                           exclusive=True) as port, contextlib.suppress(serial.SerialException):
            self.talk(port)

    def talk(self, port: serial.Serial) -> None:
        reader, inbox, outbox = Reader(FROM_PLC), Inbox(), Outbox(65530)
        last_beat = -math.inf
        while not self.stopping:
            data, now = port.read(4096), time.monotonic()
            if now - last_beat >= 0.05:
                last_beat = now
                port.write(Frame(Kind.LINE_HEARTBEAT, 2, LINE).encode())
            for frame in reader.feed(data):
                inbox.begins(frame, now)
                if frame.kind is Kind.PLC_ACK:
                    outbox.acknowledged(frame)
                elif frame.kind in COMMANDS:
                    port.write(Frame(Kind.LINE_ACK, 0, LINE, frame.sequence, frame.part).encode())
                    if inbox.repetition(frame) is not None:
                        continue
                    inbox.remember(frame, 0, now)
                    if frame.kind is Kind.TRIGGER:
                        bad = frame.part % 5 == 0
                        outbox.post(Kind.VERDICT, code=BAD if bad else PASS, part=frame.part)
                        if bad:
                            due = (frame.time + round(1000 * self.travel_s)) % (1 << 32)
                            outbox.post(Kind.REJECT, part=frame.part, value=10, time=due)
            for frame in outbox.due(now)[0]:
                port.write(replace(frame, session=LINE).encode())


def logged(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def play(folder: Path, **changes: object) -> dict[str, object]:
    """Twenty parts at 40 a second, 200 ms from the camera to the ejector, between the simulator and ``Line``."""
    line = Line(folder / "plc", 0.2)
    line.start()
    chosen = {"rate": 40.0, "parts": 20, "travel_ms": 200.0, **changes}
    summary = simulate(folder / "plc", folder / "log", PlcSettings(**chosen), after(10))
    line.stopping = True
    line.join(2)
    return summary


def test_twenty_parts_through_a_pty_reconcile(tmp_path: Path) -> None:
    summary = play(tmp_path, jitter=0.1)
    assert (summary["ended"], summary["triggers"], summary["on_belt"]) == ("parts", 20, 0)
    assert summary["ejected_ids"] == [5, 10, 15, 20]
    assert summary["passed_ids_count"] == 16
    assert summary["verdicts"] == {"pass": 16, "reject": 4, "uninspected_eject": 0, "uninspected_release": 0}
    nought = (
        "wrong_part", "missed", "late_verdicts", "missing_verdicts", "crc_errors", "garbage_bytes", "sequence_errors",
        "heartbeat_losses", "unacknowledged",
    )
    assert {key: summary[key] for key in nought} == dict.fromkeys(nought, 0)
    assert summary["confirms"] == 4
    events = logged(tmp_path / "log")
    assert events[-1] == {"t": events[-1]["t"], "event": "summary", **summary}
    assert [e["part"] for e in events if e["event"] == "trigger"] == list(range(1, 21))
    assert sorted(e["part"] for e in events if e["event"] in ("passed", "ejected")) == list(range(1, 21))
    assert not os.path.lexists(tmp_path / "plc")


def test_a_noisy_wire_changes_no_parts_fate(tmp_path: Path) -> None:
    summary = play(tmp_path, noise=0.06, tolerance_ms=12.0)
    assert any(summary[key] for key in ("garbage_bytes", "resent", "repeated_commands"))  # there was noise indeed
    assert (summary["ejected_ids"], summary["passed_ids_count"], summary["failsafe_ids"]) == ([5, 10, 15, 20], 16, [])


def test_a_link_that_dangles_is_taken_over_and_a_line_that_never_comes_ends_it(tmp_path: Path) -> None:
    (tmp_path / "plc").symlink_to("/dev/pts/99999")
    summary = simulate(tmp_path / "plc", tmp_path / "log", PlcSettings(start_timeout_s=0.2))
    assert (summary["ended"], summary["triggers"]) == ("line not ready", 0)
    assert not os.path.lexists(tmp_path / "plc")


def test_a_peer_that_vanishes_neither_ends_nor_spins_it(tmp_path: Path) -> None:
    near, far = os.openpty()
    tty.setraw(far)
    os.write(near, Frame(Kind.LINE_HEARTBEAT, 2, LINE).encode())
    name = os.ttyname(far)
    os.close(far)
    threading.Timer(0.15, os.close, [near]).start()
    cpu = time.thread_time()
    summary = simulate(Path(name), tmp_path / "log", PlcSettings(), after(0.8))
    assert time.thread_time() - cpu < 0.2
    assert summary["ended"] == "stopped"
    assert "port_lost" in [e["event"] for e in logged(tmp_path / "log")]


def test_a_port_that_is_a_file_or_a_strangers_terminal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LinkError, match="is not a port; got a file"):
        simulate(tmp_path / "file", tmp_path / "log", PlcSettings(start_timeout_s=0.1))
    near, far = os.openpty()
    (tmp_path / "old").symlink_to(os.ttyname(far))
    with pytest.raises(LinkError, match="is a link from an earlier run"), pytest.MonkeyPatch.context() as patch:
        lstat = Path.lstat
        patch.setattr(Path, "lstat", lambda p: os.stat_result([*lstat(p)[:9], lstat(p).st_ctime - 60]))
        simulate(tmp_path / "old", tmp_path / "log", PlcSettings(start_timeout_s=0.1))
    os.close(near)
    os.close(far)


def test_half_a_line_of_the_log_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = _Log(tmp_path / "log"), os.write
    log.write({"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:4]))
        log.write({"n": 2})
    log.write({"n": 3})
    log.close()
    assert (tmp_path / "log").read_text().splitlines() == ['{"n": 1}', '{"n"', '{"n": 3}']
    assert log.lost == 1


def test_a_full_disk_is_said_once_and_the_simulation_goes_on(capsys: pytest.CaptureFixture[str],
                                                             tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    summary = play(tmp_path)
    assert summary["passed_ids_count"] == 16
    assert summary["log_lines_lost"]
    assert capsys.readouterr().err.count("cannot write") == 1

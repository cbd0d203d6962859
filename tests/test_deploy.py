"""The installation on a line: what the script puts where, the systemd unit, and what a service manager is told."""

from __future__ import annotations

import queue
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from edge.line_control.realtime import PRIORITY
from edge.run.service import Service
from tests.rig import finish

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / "deploy" / "install.sh"


@pytest.fixture
def image(tmp_path) -> Path:
    """The files of an installation in a folder."""
    done = subprocess.run([INSTALL, "--root", tmp_path / "image"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / "image"


def test_files_lie_where_systemd_and_udev_look(image):
    names = {path.relative_to(image).as_posix() for path in image.rglob("*") if path.is_file()}
    assert {"etc/systemd/system/lineside@.service", "etc/udev/rules.d/99-lineside-ftdi.rules",
            "opt/lineside/docs/line-file.md"} <= names


def test_the_script_refuses_what_it_does_not_know():
    done = subprocess.run([INSTALL, "--frobnicate"], capture_output=True, text=True)
    assert done.returncode == 2 and "unknown option --frobnicate" in done.stderr
    assert subprocess.run(["bash", "-n", INSTALL]).returncode == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_one_that_systemd_takes(image):
    lineside = image / "opt/lineside/venv/bin/lineside"
    lineside.parent.mkdir(parents=True)
    lineside.write_text("#!/bin/sh\n")
    lineside.chmod(0o755)
    (image / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nlineside:x:900:900::/var/lib/lineside:/bin/sh\n")
    shutil.copytree(next(path for path in (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
                         if path.is_dir()),
                    image / "usr/lib/systemd/system", symlinks=True)  # the targets that it hangs on
    verify = ["systemd-analyze", "verify", "--man=no", f"--root={image}", "lineside@felt.service"]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert not [line for line in (done.stdout + done.stderr).splitlines() if "lineside@" in line], done.stderr
    broken = image / "etc/systemd/system/lineside@.service"
    broken.write_text(broken.read_text().replace("RestartSec=1", "RestartSecs=1"))
    done = subprocess.run(verify, capture_output=True, text=True)
    assert "RestartSecs" in done.stdout + done.stderr  # so it looked


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is not installed")
def test_the_unit_can_be_enabled_in_an_offline_root(image):
    done = subprocess.run(["systemctl", f"--root={image}", "enable", "lineside@felt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (image / "etc/systemd/system/multi-user.target.wants/lineside@felt.service").is_symlink()


def test_the_unit_grants_what_line_control_needs():
    unit = (ROOT / "deploy" / "lineside@.service").read_text()
    for line in ("LimitRTPRIO=60", "LimitMEMLOCK=infinity", "Restart=on-failure", "RestartSec=10", "WatchdogSec=30",
                 "StartLimitBurst=20", "NotifyAccess=all", "Type=notify"):
        assert line in unit.splitlines(), line
    assert int(unit.split("LimitRTPRIO=")[1].split()[0]) >= PRIORITY


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """A service manager's socket: returns all that it was told so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        heard: queue.SimpleQueue[str] = queue.SimpleQueue()

        def hear() -> str:
            try:
                return listening.recv(1000).decode()
            except OSError:  # the test is over
                return "enough"

        def listen() -> None:
            while (text := hear()) != "enough":
                heard.put(text)

        threading.Thread(target=listen, daemon=True).start()

        def told() -> list[str]:
            Service().tell("enough")
            time.sleep(0.1)
            threading.Thread(target=listen, daemon=True).start()
            return [heard.get() for _ in range(heard.qsize())]

        yield told
        Service().tell("enough")


def test_the_watchdog_hears_as_often_as_it_needs(manager, monkeypatch):
    now = [100.0]
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    service = Service(lambda: now[0])
    for _ in range(100):
        service.alive()
        now[0] += 0.05
    assert manager() == ["WATCHDOG=1"] * 10  # in 5 s, with one due every 2 s
    monkeypatch.setenv("WATCHDOG_PID", "1")
    other = Service()
    other.alive()
    assert manager() == []  # it is meant for another process


def test_without_a_manager_nothing_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Service().tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Service().tell("READY=1")


def test_a_line_tells_when_it_is_ready_alive_and_stopping(manager, monkeypatch, rig):
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    made = rig()
    made.plc(10, 10)
    line = made.run("--parts", "10")
    ledger, told = finish(line)
    heard = manager()
    assert ledger["triggers"] == 10, told
    assert heard[0] == "READY=1" and heard[-1] == "STOPPING=1" and heard.count("WATCHDOG=1") >= 3

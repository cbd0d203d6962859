#!/usr/bin/env python3
"""Run a line on emulated GigE Vision cameras, and check that every part ended once, for a reason that the camera gave.

The cameras are Aravis' fake ones, in a network namespace of their own; the PLC is the simulator. Compares the line's
ledger, the journal, the PLC's log and the camera's counts. Exit code 1 if they do not agree, 2 if this machine refuses
a network namespace. The fake camera has 25 frames a second and serves a trigger with one of the next: two triggers
within 40 ms are one frame, and it counts one; and now and then a frame comes 90 ms after its trigger, and with more
parts a second after the next one, which the line cannot tell from that.

    benchmarks/camera_soak.py                                   # a line, 20 minutes at 8 parts a second
    benchmarks/camera_soak.py --grab                            # 20 minutes of a free-running camera, 25 frames a
    second benchmarks/camera_soak.py --minutes 5 --loss 5              # 5 of 1,000 packets are lost
    benchmarks/camera_soak.py --minutes 5 --kill-every 30       # the camera dies every 30 s, and comes back
    benchmarks/camera_soak.py --minutes 5 --loss 5 --record     # and the recorded session replays equal
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.table import Table

LINESIDE = [sys.executable, "-m", "lineside"]
FAKE = "arv-fake-gv-camera-0.8"
INSIDE = "LINESIDE_CAMERA_SOAK_INSIDE"  # environment variable: set inside the network namespace
BUNDLE = Path(__file__).parents[1] / "simulation" / "demo_bundle"
IDS = 65535  # highest frame id of GigE Vision; the lowest is 1
TRAVEL = 1500  # ms; a lost frame is reported 0.25 s after the next one
WINDOW = 0.9  # as a share of the pitch: a trigger later than half of it is too near to the next one
DOWN = 1.0  # s for which a killed camera stays away
LINE = """
[line]
name = "camera soak"
bundle = "{bundle}"
threads = 1
{cameras}
[plc]
kind = "frames"
port = "plc"
[belt]
travel_ms = {travel}
[journal]
pictures = "none"
"""
CAMERA = """
[[camera]]
kind = "genicam"
serial = "{serial}"
roi = [0, 0, 256, 256]
packet_size = {packet}
resend = false
window_ms = {window:g}
trigger = "{trigger}"
"""


class FakeCamera:
    """A camera that can die."""

    def __init__(self, number: int, loss: int) -> None:
        self.serial = f"GV0{number}"
        self._words = [FAKE, "-i", f"127.0.0.{number}", "-s", self.serial, "-r", str(loss)]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def query(journal: Path, sql: str, *values: object) -> list[tuple]:
    """Rows of a journal that a line may be writing; none before its tables exist."""
    try:
        database = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return []
    try:
        return database.execute(sql, values).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        database.close()


def kill_often(camera: FakeCamera, journal: Path, every: float, times: int, back: list[float],
               done: threading.Event) -> None:
    """Kill and restart a camera every ``every`` s. ``back`` gets the s from each restart to the next inspected part."""
    inspected = "SELECT MIN(triggered) FROM parts WHERE cause IS NULL AND triggered > ?"
    while not times or len(back) < times:
        while not done.is_set() and query(journal, inspected, 0) in ([], [(None,)]):
            done.wait(0.1)
        if done.wait(every):
            return
        camera.kill()
        if done.wait(DOWN):
            return
        camera.start()
        started = time.time()
        while (found := query(journal, inspected, started)) in ([], [(None,)]):
            if done.wait(0.1):
                return
        back.append(found[0][0] - started)


def wraps(sources: list[str]) -> int:
    """How often the frame ids in a journal wrapped from the highest to the lowest."""
    newest: dict[str, int] = {}
    count = 0
    for source in sources:
        if (found := re.search(r"(.*): frame (\d+)$", source)) is not None:
            name, round_ = found[1], (int(found[2]) - 1) // IDS
            count += max(0, round_ - newest.get(name, round_))
            newest[name] = round_
    return count


def soak(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Run cameras, PLC and line in ``folder``, and compare."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "addr", "add", "127.0.0.2/8", "dev", "lo"], check=True)
    cameras = [FakeCamera(number + 1, arguments.loss) for number in range(arguments.cameras)]
    processes: list[subprocess.Popen] = []
    done, back, journal = threading.Event(), [], folder / "journal.db"
    parts = arguments.parts or round(60 * arguments.minutes * arguments.rate)
    sections = "".join(CAMERA.format(serial=camera.serial, packet=arguments.packet_size,
                                     window=1000 * WINDOW / arguments.rate, trigger="software")
                       for camera in cameras)
    (folder / "line.toml").write_text(LINE.format(bundle=arguments.bundle.resolve(), cameras=sections, travel=TRAVEL))
    killer = threading.Thread(target=kill_often, daemon=True, args=(
        cameras[0], journal, arguments.kill_every, arguments.kills, back, done))
    try:
        plc = subprocess.Popen([*LINESIDE, "plc-simulator", "--port", str(folder / "plc"), "--log",
                                str(folder / "plc.jsonl"), "--json", "--parts", str(parts), "--rate",
                                str(arguments.rate), "--travel-ms", str(TRAVEL)],
                               stdout=subprocess.PIPE, text=True)
        processes.append(plc)
        while not (folder / "plc").exists():
            if plc.poll() is not None:
                sys.exit("the PLC simulator did not start")
            time.sleep(0.02)
        with (folder / "messages.txt").open("w") as messages:
            command = ["record", "--out", str(folder / "session")] if arguments.record else ["run"]
            line = subprocess.Popen([*LINESIDE, *command, str(folder / "line.toml"), "--parts", str(parts), "--json"],
                                    stdout=subprocess.PIPE, stderr=messages, text=True)
            processes.append(line)
            if arguments.kill_every:
                killer.start()
            out = line.communicate()[0]
        if line.returncode != 0:
            messages = (folder / "messages.txt").read_text()[-2000:]
            sys.exit(f"the line ended with exit code {line.returncode}: {messages}")
        return compare(json.loads(out), json.loads(plc.communicate(timeout=60)[0]), journal, parts, back, arguments,
                       replay(folder / "session") if arguments.record else None)
    finally:
        done.set()
        if killer.ident is not None:
            killer.join()
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for camera in cameras:
            camera.kill()


def replay(session: Path) -> dict:
    """The result of replaying a session."""
    out = subprocess.run([*LINESIDE, "replay", str(session), "--json"], stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)


def grab(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Let a camera run free, and count which of its frames arrive."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    camera = FakeCamera(1, arguments.loss)
    section = CAMERA.format(serial=camera.serial, packet=arguments.packet_size, window=30, trigger="off")
    (folder / "line.toml").write_text(LINE.format(bundle=arguments.bundle.resolve(), cameras=section, travel=TRAVEL))
    seconds = 60 * arguments.minutes
    try:
        ran = subprocess.run([*LINESIDE, "camera-test", str(folder / "line.toml"), "--seconds", str(seconds), "--out",
                              str(folder), "--json"], stdout=subprocess.PIPE, text=True)
    finally:
        camera.kill()
    if not ran.stdout:
        sys.exit(f"the camera could not be tried: exit code {ran.returncode}")
    found = json.loads(ran.stdout)["cameras"][0]
    counters = found["counters"]
    agree = {
        "rate": abs(found["rate"] - 25) < 0.5,
        "all": counters["frames"] + counters["lost"] > 24.5 * seconds,
        "lost": arguments.loss > 0 or counters["lost"] == counters["incomplete"] == counters["dropped"]
        == counters["doubled"] == 0, "incomplete": arguments.loss == 0 or counters["incomplete"] > 0,
        "connection": counters["disconnects"] == 0,
    }
    return {"frames": counters, "rate": found["rate"], "jitter_ms": found["jitter_ms"], "agree": agree,
            "ok": all(agree.values())}


def compare(ledger: dict, plc: dict, journal: Path, parts: int, back: list[float], arguments: argparse.Namespace,
            again: dict | None) -> dict[str, object]:
    """The figures, and whether they agree."""
    rows = query(journal, "SELECT part, verdict, cause, image FROM parts ORDER BY id")
    frames = ledger["frames"]
    causes = Counter(cause for _, _, cause, _ in rows if cause is not None)
    told = frames["incomplete"] + frames["lost"]
    # The next frame shows that one was lost, and nothing comes after the last one.
    untold = len(list(takewhile(lambda row: row[2] == "late", reversed(rows))))
    others = sum(count for cause, count in causes.items()
                 if cause not in ("incomplete", "camera", "unmatched")) - untold
    one = arguments.cameras == 1 and not arguments.kill_every
    agree = {
        "ledger": ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"] == parts,
        "journal": len(rows) == len({row[0] for row in rows}) == parts and dict(causes) == ledger["causes"],
        "plc": plc["triggers"] == parts and sorted(plc["ejected_ids"])
        == sorted(row[0] for row in rows if row[1] != "PASS")
               and plc["wrong_part"] == plc["missed"] == plc["late_verdicts"] == 0,
        "incomplete": causes["incomplete"] <= told and (not one or told <= causes["incomplete"] + causes["unmatched"]),
        # A camera that is being realigned gets no trigger either.
        "untriggered": causes["camera"] <= frames["untriggered"] and (
            not one or frames["untriggered"] <= causes["camera"] + causes["unmatched"]),
        "causes": others == 0 or arguments.kill_every > 0,
        # otherwise the camera ignored a trigger: the fake one does, on a busy machine
        "unmatched": causes["unmatched"] == 0,
        "reconnects": frames["disconnects"] == frames["reconnects"] >= len(back),
        "replay": again is None or again["equal"],
    }
    return {
        "triggers": ledger["triggers"], "passed": ledger["passed"], "rejected": ledger["rejected"],
        "uninspected": ledger["uninspected"], "causes": dict(causes), "frames": frames,
        "id_wraps": wraps([row[3] or "" for row in rows]), "reconnect_s": [round(seconds, 2) for seconds in back],
        "latency_ms": ledger["latency_ms"], "agree": agree, "ok": all(agree.values()),
    }


def enter() -> None:
    """Restart this script in a network namespace. Returns where that is refused."""
    os.environ[INSIDE] = "1"
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        with suppress(OSError):
            if subprocess.run([*words, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0:
                os.execvp(words[0], [*words, sys.executable, *sys.argv])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE,
                        help="a bundle for grey frames of 256 px; the demo's unless given")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--parts", type=int, default=0, help="so many, instead of minutes")
    parser.add_argument("--rate", type=float, default=8.0, help="parts a second")
    parser.add_argument("--grab", action="store_true", help="no line: the camera runs free, 25 frames a second")
    parser.add_argument("--record", action="store_true", help="record the line, and replay it")
    parser.add_argument("--cameras", type=int, choices=(1, 2), default=1)
    parser.add_argument("--loss", type=int, default=0, help="packets of 1,000 that are lost")
    parser.add_argument("--packet-size", type=int, default=1400, help="bytes; a frame has 65,536")
    parser.add_argument("--kill-every", type=float, default=0.0,
                        help="s of inspecting after which the first camera is killed; 0: never")
    parser.add_argument("--kills", type=int, default=0, help="at most; 0: until the end")
    parser.add_argument("--keep", type=Path, help="keep line file, journal and logs in this folder")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    run = grab if arguments.grab else soak
    if INSIDE not in os.environ:
        enter()
        print("NO NETWORK NAMESPACE: this machine refuses `unshare -n`, or has no `ip`", file=sys.stderr)
        return 2
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        result = run(arguments.keep, arguments)
    else:
        with tempfile.TemporaryDirectory(prefix="lineside-camera-soak-") as folder:
            result = run(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        parts = f"{result.get('triggers')} parts at {arguments.rate:g} a second"
        of = "a camera that runs free" if arguments.grab else parts
        table = Table("figure", "value", title=of)
        for name, value in result.items():
            table.add_row(name, str(value))
        Console().print(table)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Play a folder through `lineside run` against the PLC simulator, and check that no part was lost, doubled, late or
judged differently.

Compares the journal with the PLC's log part by part and with `lineside inspect` image by image, and resident memory at
the end with that after 1,000 parts. Exit code 1 if anything differs.

    benchmarks/soak.py --bundle simulation/demo_bundle                        # 5,000 rendered parts at 25 a second
    benchmarks/soak.py --bundle leather-bundle --frames leather/test --rate 4      # all images of a folder, once
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge.bundle.bundle import load_bundle
from edge.images.files import list_images, read_image
from edge.inspection.inspector import Inspector
from simulation.demo import FIRST_INDEX, SURFACE_SEED
from simulation.render.surface import Surface, render_sequence

LINESIDE = [sys.executable, "-m", "lineside"]
LINE = """
[line]
name = "soak"
bundle = "{bundle}"
[camera]
kind = "folder"
path = "{frames}"
[plc]
kind = "frames"
port = "plc"
[belt]
travel_ms = {travel}
[journal]
pictures = "none"
"""


def resident_mb(pid: int) -> float:
    """VmRSS of a process and its children, in MB."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = [Path(f"/proc/{number}/status").read_text() for number in [pid, *started]]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in status) / 1024


def watch(pid: int, journal: Path, samples: list[tuple[int, float]], done: threading.Event, report) -> None:
    """Sample (parts in the journal, resident MB) twice a second."""
    while not done.wait(0.5):
        try:
            database = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
            (parts,) = database.execute("SELECT COUNT(*) FROM parts").fetchone()
            database.close()
            samples.append((parts, resident_mb(pid)))
            report(parts)
        except (sqlite3.Error, OSError, IndexError):
            continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--frames", type=Path, help="folder to play once; rendered cloth unless given")
    parser.add_argument("--parts", type=int, default=5000, help="how many rendered parts")
    parser.add_argument("--rate", type=float, default=25.0, help="parts a second")
    parser.add_argument("--travel-ms", type=float, default=500.0)
    parser.add_argument("--noise", type=float, default=0.0, help="probability that a frame on the wire is corrupted")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineside-soak-") as folder:
        result = soak(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        table = Table("figure", "value", title=f"{result['triggers']} parts at {arguments.rate:g} a second")
        for name, value in result.items():
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
        Console().print(table)
    return 0 if result["passed_all"] else 1


def soak(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Render frames unless there are some, run line and PLC, and compare."""
    frames = arguments.frames
    with Progress(console=Console(stderr=True)) as bar:
        if frames is None:
            task = bar.add_task("rendering", total=arguments.parts)
            render_sequence(folder / "cloth", Surface("woven", SURFACE_SEED), parts=arguments.parts, defect_rate=0.1,
                            first_index=FIRST_INDEX, progress=lambda done, _: bar.update(task, completed=done))
            frames = folder / "cloth" / "frames"
        parts = len(list_images(frames))
        text = LINE.format(bundle=arguments.bundle.resolve(), frames=frames.resolve(), travel=arguments.travel_ms)
        (folder / "line.toml").write_text(text)
        options = {"port": folder / "plc", "log": folder / "plc.jsonl", "parts": parts, "rate": arguments.rate,
                   "travel-ms": arguments.travel_ms, "noise": arguments.noise}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        plc = subprocess.Popen([*LINESIDE, "plc-simulator", *words, "--json"], stdout=subprocess.PIPE, text=True)
        while not (folder / "plc").exists():
            if plc.poll() is not None:
                sys.exit("the PLC simulator did not start")
            time.sleep(0.02)
        line = subprocess.Popen([*LINESIDE, "run", str(folder / "line.toml"), "--parts", str(parts), "--json"],
                                stdout=subprocess.PIPE, text=True)
        task = bar.add_task("running", total=parts)
        samples: list[tuple[int, float]] = []
        done = threading.Event()
        running = task
        watcher = threading.Thread(target=watch, args=(line.pid, folder / "journal.db", samples, done,
                                                       lambda n: bar.update(running, completed=n)))
        watcher.start()
        out = line.communicate()[0]
        done.set()
        watcher.join()
        if line.returncode != 0:
            plc.terminate()
            sys.exit(f"the line ended with exit code {line.returncode}")
        ledger, summary = json.loads(out), json.loads(plc.communicate()[0])
        with sqlite3.connect(folder / "journal.db") as database:
            rows = database.execute("SELECT part, verdict, cause, score, image FROM parts ORDER BY part").fetchall()
        database.close()
        task = bar.add_task("comparing with inspect", total=len(rows))
        bundle = load_bundle(arguments.bundle)
        threshold = bundle.calibrated_threshold("fp32", "openvino").value
        otherwise = 0
        with Inspector(bundle) as inspector:
            for _, verdict, cause, score, image in rows:
                if cause is None:
                    expected = inspector.inspect(read_image(frames / image), threshold)
                    otherwise += (expected.verdict.value, expected.score) != (verdict, score)
                bar.advance(task)
    expected_ids = sorted(row[0] for row in rows if row[1] != "PASS")
    early = [mb for count, mb in samples if count >= 1000][:1]
    last = samples[-1][1] if samples else None
    growth = None if not early or last is None else last / early[0] - 1
    result = {
        "triggers": ledger["triggers"], "passed": ledger["passed"], "rejected": ledger["rejected"],
        "uninspected": ledger["uninspected"], "causes": ledger["causes"], "lost": parts - len(rows),
        "doubled": len(rows) - len({row[0] for row in rows}),
        "late": summary["late_verdicts"] + summary["missed"] + summary["wrong_part"] + ledger["late_verdicts"],
        "ejected_as_expected": expected_ids == sorted(summary["ejected_ids"]), "otherwise_than_inspect": otherwise,
        "reject_lateness_ms": summary["reject_lateness_ms"], "latency_ms": ledger["latency_ms"],
        "realtime": ledger["realtime"], "resident_mb_after_1000": early[0] if early else None,
        "resident_mb_at_end": last, "growth": growth, "plc_own_lateness_ms": summary["own_lateness_ms"],
        "wire": ledger["wire"],
    }
    result["passed_all"] = (
        result["triggers"] == result["passed"] + result["rejected"] + result["uninspected"] == len(rows)
        == summary["triggers"] == parts
        and not result["lost"] and not result["doubled"] and not result["late"] and result["ejected_as_expected"]
        and not otherwise
        and (growth is None or growth <= 0.05))
    return result


if __name__ == "__main__":
    sys.exit(main())

"""The demo: rendered cloth on a simulated belt, inspected with the packaged bundle, rejected over a pseudo serial port.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from edge.base.console import progress_bar
from edge.base.errors import InputError, LinesideError
from edge.base.files import write_text_safely
from edge.bundle.bundle import load_bundle
from simulation.render.surface import Surface, render_sequence

SURFACE_SEED = 7  # the product that the packaged bundle was fitted on
FIRST_INDEX = 100_000  # parts from here on were used neither for fitting nor for calibration
DEFECT_RATE = 0.15
TRAVEL_MS = 500

FIRST_LINE = "# The demo's line. Paths are relative to this file."
WRITTEN = ("line.toml", "bundle", "parts", "plc", "plc.jsonl", "plc.txt", "summary.json", "journal.db",
           "journal.db-wal", "journal.db-shm", "journal-pictures")

LINE_FILE = FIRST_LINE + """
[line]
name = "demo"
bundle = "{bundle}"

[camera]
kind = "folder"
path = "parts/frames"

[plc]
kind = "frames"
port = "plc"            # made by `lineside plc-simulator --port plc`

[belt]
travel_ms = {travel}         # camera to ejector
lead_ms = 100           # how long before the ejector a REJECT is sent
pulse_ms = 20
uninspected = "eject"

[journal]
path = "journal.db"
pictures = "rejects"
"""


def prepare_demo(out: Path, bundle: Path | None, *, parts: int, seed: int) -> list[dict[str, Any]]:
    """Write the rendered parts, a copy of the bundle and ``line.toml`` into ``out``; replaces an older demo there.

    Returns a row for each part: part (0-based), file, label, defect_px. Raises InputError if ``out`` holds anything
    else.
    """
    source = (bundle or Path(str(files("simulation") / "demo_bundle"))).resolve()
    load_bundle(source).calibrated_threshold("fp32", "openvino")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        line_file = out / "line.toml"
        others = [path.name for path in out.iterdir() if path.name not in WRITTEN] if out.is_dir() else [out.name]
        ours = line_file.is_file() and line_file.read_text().startswith(FIRST_LINE)
        if others or not ours or out.resolve() in source.parents:
            raise InputError(f"{out} holds something other than a demo", got=", ".join(others[:3]) or None,
                             expected="an empty folder, or an older demo", next="Give another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text_safely(out / "line.toml", LINE_FILE.format(bundle="bundle", travel=TRAVEL_MS))
    shutil.copytree(source, out / "bundle")
    with progress_bar("rendering parts") as progress:
        return render_sequence(out / "parts", Surface("woven", SURFACE_SEED), parts=parts, defect_rate=DEFECT_RATE,
                               first_index=FIRST_INDEX + 10_000 * seed, progress=progress)


def run_demo(out: Path, bundle: Path | None = None, *, parts: int, rate: float, seed: int = 0) -> dict[str, Any]:
    """Run the demo and write ``out/summary.json``. Returns the summary."""
    rows = prepare_demo(out, bundle, parts=parts, seed=seed)
    lineside = [sys.executable, "-m", "lineside"]
    with (out / "plc.txt").open("w") as plc_output:
        plc = subprocess.Popen(
            [*lineside, "plc-simulator", "--port", str(out / "plc"), "--log", str(out / "plc.jsonl"), "--rate",
             str(rate), "--parts", str(parts), "--travel-ms", str(TRAVEL_MS)], stdout=plc_output,
             stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 30
            while not (out / "plc").exists() and plc.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            print(f"running {parts} parts at {rate:g} a second against the PLC simulator ...", file=sys.stderr)
            line = subprocess.run([*lineside, "run", str(out / "line.toml"), "--parts", str(parts), "--json"],
                                  stdout=subprocess.PIPE, text=True, timeout=120 + 3 * parts / rate)
            if line.returncode == 0:
                plc.wait(30)
        except subprocess.TimeoutExpired as error:
            raise LinesideError("the demo's line did not end", got=f"nothing for {error.timeout:.0f} s",
                                next=f"See {out / 'plc.txt'}.") from error
        finally:
            if plc.poll() is None:
                plc.terminate()
                plc.wait(10)
    if line.returncode != 0 or plc.returncode != 0:
        raise LinesideError("the demo's line failed", got=f"exit code {line.returncode} of the line, "
                            f"{plc.returncode} of the PLC simulator",
                            next=f"See the messages above and {out / 'plc.txt'}.")
    summary = summarise(out, json.loads(line.stdout), rows)
    write_text_safely(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def summarise(out: Path, ledger: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the line's ledger, the PLC's log and the rendered truth."""
    with sqlite3.connect(out / "journal.db") as database:
        verdicts = dict(database.execute("SELECT part, verdict FROM parts"))
    database.close()
    log = [json.loads(text) for text in (out / "plc.jsonl").read_text().splitlines()]
    plc = log[-1]
    expected = sorted(part for part, verdict in verdicts.items() if verdict != "PASS")
    ejected = sorted(plc["ejected_ids"])
    defective = [row["part"] + 1 for row in rows if row["label"] != "good"]  # the PLC counts from 1
    good = [row["part"] + 1 for row in rows if row["label"] == "good"]
    caught = sum(verdicts.get(part) != "PASS" for part in defective)
    false_rejects = sum(verdicts.get(part) != "PASS" for part in good)
    counts = {name: ledger[name] for name in ("triggers", "passed", "rejected", "uninspected")}
    reconciled = (counts["triggers"] == counts["passed"] + counts["rejected"] + counts["uninspected"] == len(verdicts)
                  and plc["triggers"] == counts["triggers"] and expected == ejected)
    return {
        **counts, "ejected_ids_expected": expected, "ejected_ids_by_plc": ejected,
        "recall": caught / len(defective) if defective else None,
        "false_reject_rate": false_rejects / len(good) if good else None,
        "defective": len(defective), "escaped_ids": [part for part in defective if verdicts.get(part) == "PASS"],
        "false_reject_ids": [part for part in good if verdicts.get(part) != "PASS"],
        "reconciled": reconciled, "causes": ledger["causes"], "latency_ms": ledger["latency_ms"], "plc": plc,
    }


def print_demo(summary: dict[str, Any], out: Path) -> None:
    """Print the ledger beside the PLC's own log."""
    from rich.console import Console
    from rich.table import Table

    plc = summary["plc"]
    table = Table("", "line's ledger", "PLC's log", title="The demo's parts, counted on both sides of the wire")
    verdicts = plc["verdicts"]
    table.add_row("triggers", str(summary["triggers"]), str(plc["triggers"]))
    table.add_row("passed", str(summary["passed"]), str(verdicts["pass"]))
    table.add_row("rejected", str(summary["rejected"]), str(verdicts["reject"]))
    table.add_row("uninspected", str(summary["uninspected"]),
                  str(verdicts["uninspected_eject"] + verdicts["uninspected_release"]))
    table.add_row("ejected", str(len(summary["ejected_ids_expected"])), str(len(summary["ejected_ids_by_plc"])))
    table.add_row("late, missed or wrong part", "-", str(plc["late_verdicts"] + plc["missed"] + plc["wrong_part"]))
    console = Console()
    console.print(table)
    console.print("The PLC ejected exactly the expected parts." if summary["reconciled"]
                  else "[red]The two do NOT agree: compare journal.db and plc.jsonl.")
    latency = summary["latency_ms"]
    recall, rate = ("-" if figure is None else f"{figure:.3f}"
                    for figure in (summary["recall"], summary["false_reject_rate"]))
    console.print(f"{summary['defective']} parts have a defect: recall {recall}, false-reject rate {rate}; "
                  f"exposure to verdict p50 {latency.get('p50', 0):.1f} ms, p99 {latency.get('p99', 0):.1f} ms",
                  soft_wrap=True)
    console.print(f"Pictures of the rejects: {out / 'journal-pictures'}; figures: {out / 'summary.json'}",
                  soft_wrap=True)

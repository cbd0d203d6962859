"""`lineside simulate` in real time: the real processes of a line, a simulated PLC on a pty, and the faults of a
scenario.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from edge.base.console import progress_bars
from edge.base.errors import InputError, LinesideError
from edge.base.files import write_text_safely
from edge.bundle.bundle import load_bundle
from edge.images.files import list_images, read_image
from edge.inspection.inspector import Inspector
from simulation.demo import FIRST_INDEX, SURFACE_SEED
from simulation.render.surface import Surface, render_sequence
from simulation.scenario.fault_board import FaultBoard
from simulation.scenario.file import ScenarioFile, kind_of
from simulation.scenario.injector import Injector, RunningLine
from simulation.scenario.reconcile import Evidence, Occurrence, Reconciliation, reconcile
from simulation.scenario.timeline import draw_timelines

MARK = "# A simulation of `lineside simulate`. Paths are relative to this file."
LINE_FILE = MARK + """
[line]
name = {name}
bundle = "bundle"
[camera]
kind = "folder"
path = {frames}
loop = true
match = "{match}"
window_counts = {window_counts}
window_ms = {window_ms}
[plc]
kind = "frames"
port = "plc"
[belt]
travel_ms = {travel}
lead_ms = {lead}
uninspected = "{uninspected}"
[journal]
path = "journal.db"
"""
TURN = 0.01  # s between two looks at the PLC's log
GRACE = 60.0  # s beyond the time of all parts and faults, after which the run counts as hung
START_WAIT = 30.0  # s for the PLC simulator to make its port
END_WAIT = 10.0  # s for a process to end


def simulate_scenario(file: ScenarioFile, out: Path) -> tuple[Reconciliation, dict[str, Any]]:
    """Run a scenario in the folder ``out``; replaces an older simulation there. Writes report.json and timeline
    pictures.

    Returns the result of the checks, and the report. Raises LinesideError when the simulation itself fails.
    """
    truth, images, frames = _prepare(file, out)
    with progress_bars() as progress:
        evidence = _run(file, out, lambda done, total: progress("running", done, total))
        evidence.truth = {part: truth[(part - 1) % len(truth)] for part in range(1, file.scenario.count + 1)}
        evidence.images = {part: images[(part - 1) % len(images)] for part in evidence.truth}
        evidence.inspected = _inspect(out / "bundle", frames, evidence, lambda done,
                                      total: progress("inspecting again", done, total))
    expect = file.scenario.expect
    seen = {str(cause): least for cause, least in expect.seen.items()}
    result = reconcile(evidence, allowed=frozenset(expect.causes), seen=seen, restarts=expect.restarts,
                       may_pass=expect.may_pass)
    pictures = draw_timelines(out / "timelines", result, evidence)
    report = {
        "scenario": file.name, "about": file.scenario.about, **result.as_json(),
        "faults": [vars(o) for o in evidence.occurrences], "ledgers": evidence.ledgers,
        "exit_codes": evidence.exit_codes, "plc": evidence.summary, "timelines": pictures,
    }
    write_text_safely(out / "report.json", json.dumps(report, indent=1) + "\n")
    return result, report


def _prepare(file: ScenarioFile, out: Path) -> tuple[list[str], list[str], Path]:
    """Write all that a run needs.

    Returns truth and name of each image in order of arrival, and the folder of the images.
    """
    scenario = file.scenario
    packaged = Path(str(files("simulation") / "demo_bundle"))
    source = (file.resolve(scenario.bundle) if scenario.bundle else packaged).resolve()
    load_bundle(source).calibrated_threshold("fp32", "openvino")
    _make_room(out, source)
    shutil.copytree(source, out / "bundle")
    if scenario.parts == "folder":
        assert scenario.path is not None
        frames = file.resolve(scenario.path).resolve()
        images = [path.relative_to(frames).as_posix() for path in list_images(frames)]
        truth = ["unknown"] * len(images)
    else:
        with progress_bars() as progress:
            rows = render_sequence(out / "parts", Surface("woven", SURFACE_SEED), parts=scenario.count,
                                   defect_rate=scenario.defect_rate, first_index=FIRST_INDEX + 10_000 * scenario.seed,
                                   progress=lambda done, total: progress("rendering parts", done, total))
        frames = (out / "parts" / "frames").resolve()
        images = [Path(str(row["file"])).name for row in rows]
        truth = [str(row["label"]) for row in rows]
    write_text_safely(out / "line.toml", LINE_FILE.format(
        name=json.dumps(file.name), frames=json.dumps(str(frames)), travel=scenario.travel_ms, lead=scenario.lead_ms,
        uninspected=scenario.uninspected, match=scenario.match, window_counts=scenario.window_counts,
        window_ms=scenario.window_ms))
    (out / "faults").mkdir()
    given = [fault.model_dump() for fault in file.faults]
    write_text_safely(out / "faults" / "faults.json", json.dumps(given))
    shutil.copy(file.path, out / "scenario.toml")
    return truth, images, frames


def _make_room(out: Path, source: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        line_file = out / "line.toml"
        if not line_file.is_file() or not line_file.read_text().startswith(MARK) or out.resolve() in source.parents:
            raise InputError(f"{out} holds something other than a simulation",
                             expected="an empty folder, or an older simulation",
                             next="Give another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _run(file: ScenarioFile, out: Path, progress: Any) -> Evidence:
    scenario = file.scenario
    board = FaultBoard(out / "faults")
    lasting = sum(getattr(fault, "for_s", 0.0) + getattr(fault, "pause_s", 0.0) for fault in file.faults)
    line = RunningLine(out)
    with tempfile.TemporaryFile("w+") as plc_output:
        plc = subprocess.Popen(
            [sys.executable, "-m", "lineside", "plc-simulator", "--port", str(out / "plc"), "--log",
             str(out / "plc.jsonl"), "--rate", str(scenario.rate), "--parts", str(scenario.count), "--travel-ms",
             str(scenario.travel_ms), "--jitter", str(scenario.jitter), "--seed", str(scenario.seed), "--faults",
             str(out / "faults")],
            stdout=plc_output, stderr=subprocess.STDOUT)
        injector = Injector(file, board, line, plc.pid)
        log = _LogTail(out / "plc.jsonl")
        try:
            _wait_for_port(out / "plc", plc)
            line.start()
            deadline = time.monotonic() + scenario.count / scenario.rate + lasting + GRACE
            while plc.poll() is None:
                if time.monotonic() > deadline:
                    raise LinesideError("the scenario does not end", got=f"part {log.part} of {scenario.count}",
                                        next=f"See {out / 'plc.jsonl'}. The line's last messages: "
                                             + " | ".join(line.messages[-5:]))
                if line.process is not None and line.process.poll() is not None:
                    break  # the line has given up: check what there is
                log.read()
                injector.turn(log.part, None if log.first is None else time.monotonic() - log.first)
                progress(log.part, scenario.count)
                time.sleep(TURN)
            injector.close()
            line.end()
        finally:
            injector.close()
            for process in (plc, line.process):
                if process is not None and process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(END_WAIT)
                    except subprocess.TimeoutExpired:
                        process.kill()
            write_text_safely(out / "line.txt", "\n".join(line.messages) + "\n")
        plc_output.seek(0)
        if not (out / "plc.jsonl").exists():
            raise LinesideError("the PLC simulator did not start", got=plc_output.read().strip())
    return _evidence(file, out, board, line)


def _wait_for_port(port: Path, plc: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_WAIT
    while not port.exists():
        if plc.poll() is not None or time.monotonic() > deadline:
            raise LinesideError("the PLC simulator did not start", got=f"exit code {plc.poll()}",
                                expected=f"a port {port}")
        time.sleep(TURN)


class _LogTail:
    """Follows the PLC's log: the last part that was triggered, and when the first one was."""

    def __init__(self, path: Path) -> None:
        self.part = 0
        self.first: float | None = None
        self._path, self._at = path, 0

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._at)
            text = file.read()
        whole = text[:text.rfind("\n") + 1]
        self._at += len(whole.encode())
        for entry in map(json.loads, whole.splitlines()):
            if entry["event"] == "trigger":
                self.part = entry["part"]
                if self.first is None:
                    self.first = time.monotonic()


def _evidence(file: ScenarioFile, out: Path, board: FaultBoard, line: RunningLine) -> Evidence:
    log = [json.loads(text) for text in (out / "plc.jsonl").read_text().splitlines()]
    with sqlite3.connect(out / "journal.db") as database:
        database.row_factory = sqlite3.Row
        columns = "part, triggered, ended, encoder, verdict, cause, score, image"
        try:
            rows = [dict(row) for row in database.execute(f"SELECT {columns} FROM parts")]
        except sqlite3.OperationalError as error:
            raise LinesideError("the line did not start", got=" | ".join(line.messages[-5:]),
                                next=f"See {out / 'line.txt'}.") from error
    database.close()
    start = next(entry for entry in log if entry["event"] == "start")
    for row in rows:  # into seconds since the PLC's start
        row["triggered"], row["ended"] = row["triggered"] - start["unix"], row["ended"] - start["unix"]
    happened = []
    if (board.folder / "happened.jsonl").exists():
        happened = [json.loads(text) for text in (board.folder / "happened.jsonl").read_text().splitlines()]
    occurrences = []
    for number, fault in enumerate(file.faults):
        records = [record for record in happened if record["fault"] == number]
        if records:
            times = [record["monotonic"] - start["monotonic"] for record in records]
            ends = times[-1] if len(records) > 1 or records[-1]["event"] == "part" else log[-1]["t"]
            occurrences.append(Occurrence(number, kind_of(fault), times[0], ends,
                                          tuple(record["part"] for record in records if record["part"] is not None)))
    restarts = sum("was restarted" in text and " ended with " in text for text in line.messages)
    return Evidence(log[:-1], log[-1], rows, line.ledgers, {}, {}, {}, occurrences, [kind_of(f) for f in file.faults],
                    line.exit_codes, restarts)


def _inspect(bundle: Path, frames: Path, evidence: Evidence, progress: Any) -> dict[int, tuple[str, float]]:
    """Inspect the image of each part that has a verdict again, outside the line. Returns verdict and score by part."""
    loaded = load_bundle(bundle)
    judged = sorted({row["part"] for row in evidence.rows if row["verdict"] != "UNINSPECTED"
                     and row["part"] in evidence.images})
    by_image: dict[str, tuple[str, float]] = {}
    with Inspector(loaded) as inspector:
        threshold = loaded.calibrated_threshold("fp32", inspector.backend).value
        for done, part in enumerate(judged, 1):
            name = evidence.images[part]
            if name not in by_image:
                inspection = inspector.inspect(read_image(frames / name), threshold)
                assert inspection.verdict is not None
                by_image[name] = inspection.verdict.value, inspection.score
            progress(done, len(judged))
    return {part: by_image[evidence.images[part]] for part in judged}

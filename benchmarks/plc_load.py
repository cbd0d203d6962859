"""A real `lineside run` under load, for benchmarks: line file, processes, and a PLC that triggers as fast as wanted."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.base.errors import InputError
from edge.bundle.bundle import Bundle, load_bundle, write_card
from edge.bundle.decision import OVERLAP, read_decision, write_threshold
from edge.images.files import write_image
from edge.images.frames import Frame as Image
from edge.inspection.golden import read_golden
from simulation.plc.wire import Frame, Kind, Reader

BEAT = 0.050  # s between the PLC's heartbeats
START = 120.0  # s for a line to become ready
TRAVEL_MS, LEAD_MS = 1000, 100
LINE = """
[line]
name = "benchmark"
bundle = "{bundle}"
threads = {threads}
mode = "{mode}"
{cameras}
[plc]
kind = "frames"
port = "{port}"
[belt]
travel_ms = {travel}
lead_ms = {lead}
[journal]
path = "journal.db"
pictures = "{pictures}"
"""
CAMERA = """[[camera]]
kind = "folder"
path = "frames"
loop = true
preload = true
"""


def enough(rate: float, budget_ms: float = TRAVEL_MS - LEAD_MS) -> int:
    """How many parts may wait for their verdicts so that a line at that rate is full and no part is late."""
    return max(6, min(24, int(0.4 * rate * budget_ms / 1000)))


@dataclass
class Load:
    """What the PLC measured. Moments are s of time.monotonic."""

    verdicts: list[float] = field(default_factory=list)  # when each came
    waits: list[float] = field(default_factory=list)  # ms from the trigger's first byte to the verdict's last
    codes: list[int] = field(default_factory=list)  # of the verdicts, as in docs/plc-frames.md
    refused: int = 0

    def rate(self, skip: float = 0.2) -> float:
        """Verdicts a second, without the first ``skip`` verdicts."""
        rest = self.verdicts[int(len(self.verdicts) * skip):]
        return (len(rest) - 1) / (rest[-1] - rest[0])

    @property
    def inspected(self) -> bool:
        """Whether each part was inspected."""
        return not self.refused and all(code in (0, 1) for code in self.codes)


class RunningLine:
    """A `lineside run` that is ready, and the PLC's end of its port."""

    def __init__(self, process: subprocess.Popen[str], port: int, folder: Path, started: float) -> None:
        self.process, self.folder, self.started = process, folder, started
        self.ready_after = 0.0  # s from the start to the first heartbeat that says ready
        self._port, self._reader, self._began = port, Reader(), time.monotonic()
        self._beat, self._part, self._sequence = 0.0, 0, 0
        self._out = bytearray()  # sent in one piece, since each write wakes the line
        self._state = 0
        self.figures: dict[str, Any] = {}  # what the line prints at its end

    def _send(self, kind: Kind, sequence: int = 0, part: int = 0, code: int = 0) -> None:
        self._out += Frame(kind, code, 7, sequence, part, 0, int(1000 * (time.monotonic() - self._began))).encode()

    def _turn(self, timeout: float) -> Iterator[tuple[Frame, float]]:
        """Keep the link alive and acknowledge commands. Yields each message that came in, and when it came."""
        now = time.monotonic()
        if now >= self._beat or (self._out and now >= self._beat - BEAT / 2):
            self._send(Kind.PLC_HEARTBEAT, code=1)
            self._beat = now + BEAT
        if self._out:
            del self._out[:os.write(self._port, self._out)]
        if not select.select([self._port], [], [], max(0.0, min(timeout, self._beat - now)))[0]:
            return
        with contextlib.suppress(BlockingIOError):
            data, at = os.read(self._port, 4096), time.monotonic()
            for frame in self._reader.feed(data):
                if frame.kind in (Kind.VERDICT, Kind.REJECT, Kind.FAULT):
                    self._send(Kind.PLC_ACK, frame.sequence, frame.part)
                if frame.kind == Kind.LINE_HEARTBEAT:
                    self._state = frame.code
                yield frame, at

    def wait_until_ready(self) -> None:
        """Wait until the line takes parts."""
        while self._state not in (2, 3):
            if self.process.poll() is not None or time.monotonic() - self.started > START:
                raise InputError(f"the line did not start: {self.process.communicate()[1].strip()}")
            for _ in self._turn(0.01):
                pass
        self.ready_after = time.monotonic() - self.started

    def play(self, parts: int, *, outstanding: int = 0, rate: float = 0.0) -> Load:
        """Trigger parts: ``rate`` a second, or whenever fewer than ``outstanding`` parts wait for their verdicts."""
        load, sent, first = Load(), dict[int, float](), self._part
        begin, deadline = time.monotonic(), time.monotonic() + 600
        while len(load.verdicts) + load.refused < parts and time.monotonic() < deadline:
            due = begin + (self._part - first) / rate if rate else 0.0
            wait = 0.05
            if self._part - first < parts:
                if (time.monotonic() >= due) if rate else len(sent) < outstanding:
                    self._part, self._sequence = self._part + 1, (self._sequence + 1) & 0xFFFF
                    sent[self._part] = time.monotonic()
                    self._send(Kind.TRIGGER, self._sequence, self._part)
                    continue
                wait = max(0.0, due - time.monotonic()) if rate else wait
            for frame, at in self._turn(wait):
                if frame.kind == Kind.VERDICT and frame.part in sent:
                    load.waits.append(1000 * (at - sent.pop(frame.part)))
                    load.verdicts.append(at)
                    load.codes.append(frame.code)
                elif frame.kind == Kind.LINE_ACK and frame.code != 0 and frame.part in sent:
                    load.refused += 1
                    del sent[frame.part]
        return load

    def resident_mb(self) -> dict[str, float]:
        """Resident memory of each process of the line, MB."""
        found: dict[str, float] = {}
        line = self.process.pid
        children = Path(f"/proc/{line}/task/{line}/children").read_text().split()
        for pid in [line, *map(int, children)]:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            child = "control" if "edge.line_control.process" in words else "runtime"
            name = "supervisor" if pid == line else child
            status = Path(f"/proc/{pid}/status").read_text()
            found[name] = int(status.split("VmRSS:")[1].split()[0]) / 1024
        return found

    def end(self) -> None:
        """Stop the line and keep what it printed in ``figures``."""
        self.process.send_signal(signal.SIGTERM)
        while self.process.poll() is None:
            for _ in self._turn(0.05):
                pass
        out, err = self.process.communicate()
        if self.process.returncode != 0:
            raise RuntimeError(f"the line ended with {self.process.returncode}: {err}")
        self.figures = json.loads(out)


def golden_frames(bundle: Bundle) -> list[Image]:
    """The good golden parts of a bundle as camera frames: with the camera's channels, in the largest size that was
    fitted on.
    """
    parts, frames, _ = read_golden(bundle)
    channels = 3 if bundle.card.frames.colour else 1
    size = (bundle.card.frames.max_width, bundle.card.frames.max_height)
    frames = [frame if frame.shape[1::-1] == size else np.asarray(np.atleast_3d(cv2.resize(frame, size)), np.uint8)
              for frame in frames]
    return [np.repeat(frame, channels // frame.shape[2], axis=2) if frame.shape[2] < channels else frame
            for part, frame in zip(parts, frames, strict=True) if part.kind == "good"]


def mosaics(frames: list[Image], rows: int, columns: int) -> list[Image]:
    """Large frames: each is a frame mirrored repeatedly, without seams, as large as rows x columns tiles that overlap
    by an eighth.
    """
    height, width = frames[0].shape[:2]
    size = (height * rows - height // OVERLAP * (rows - 1), width * columns - width // OVERLAP * (columns - 1))
    made = []
    for frame in frames:
        wall = [np.concatenate([frame[::-1 if row % 2 else 1, ::-1 if column % 2 else 1] for column in range(columns)],
                               axis=1)
                for row in range(rows)]
        made.append(np.ascontiguousarray(np.concatenate(wall)[:size[0], :size[1]]))
    return made


def tiled_copy(folder: Path, out: Path) -> Path:
    """A copy of a bundle that inspects in tiles of its golden frames' size.

    Thresholds stay as they are: for speed, not for verdicts.
    """
    shutil.copytree(folder, out)
    height, width = golden_frames(load_bundle(folder))[0].shape[:2]
    before = read_decision(out)
    path = out / "decision.toml"
    path.write_text(f"tile = [{width}, {height}]\noverlap = {min(width, height) // OVERLAP}\n{path.read_text()}")
    rule = read_decision(out).rule_sha256(out)
    bundle = load_bundle(out)
    cards = {name: card.model_copy(update={"rule_sha256": rule}) for name, card in bundle.card.precisions.items()}
    write_card(out / "model", bundle.card.model_copy(update={"precisions": cards}))
    for threshold in before.threshold:
        write_threshold(out, threshold, bundle.graph_sha256(threshold.precision), rule)
    return out


@contextmanager
def running_line(bundle: Path, *, frames: list[Image] | None = None, precision: str = "auto", backend: str = "auto",
                 threads: int = 0, mode: str = "throughput", cameras: int = 1, pictures: bool = True,
                 travel_ms: int = TRAVEL_MS, lead_ms: int = LEAD_MS) -> Iterator[RunningLine]:
    """Run a line on a bundle's own good golden frames, or on ``frames``, from memory; so many cameras see the same. It
    is ready, and it is stopped at the end.

    pictures: False for frames that are nearly all rejected, as those of no line are, so that their pictures do not take
    the time.
    """
    near, far = os.openpty()
    tty.setraw(far)
    os.set_blocking(near, False)
    with tempfile.TemporaryDirectory(prefix="lineside-benchmark-") as name:
        folder = Path(name)
        (folder / "frames").mkdir()
        for number, frame in enumerate(frames or golden_frames(load_bundle(bundle))):
            write_image(folder / "frames" / f"{number:04}.png", np.ascontiguousarray(frame))
        (folder / "line.toml").write_text(LINE.format(bundle=bundle.resolve(), port=os.ttyname(far), threads=threads,
                                                      mode=mode, cameras=cameras * CAMERA, travel=travel_ms,
                                                      lead=lead_ms, pictures="rejects" if pictures else "none"))
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "lineside", "run", str(folder / "line.toml"), "--precision", precision, "--backend",
             backend, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = RunningLine(process, near, folder, started)
        try:
            line.wait_until_ready()
            yield line
            line.end()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(near)
            os.close(far)

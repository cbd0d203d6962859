"""`lineside check`: whether a line meets its deadlines on this machine, by what margin, and what to change where it
does not.

Each stage is measured on the line's own images. The time on the PLC's wire cannot be measured without the PLC, so it is
calculated.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import select
import signal
import socket
import subprocess
import tempfile
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import CameraError, LinkError
from edge.bundle.bundle import load_bundle
from edge.cameras.camera import Camera
from edge.cameras.kinds import make_camera
from edge.inspection.choice import choose
from edge.inspection.inspector import Inspector
from edge.line_control.job import ControlJob
from edge.line_control.messages import Channel, Hello
from edge.line_control.parts import BeltTiming
from edge.line_control.start import start_control
from edge.line_file import LineFile, read_line_file
from edge.part.events import Expose, PartVerdict, RuntimeReady
from edge.part.verdict import Verdict
from edge.plc.frames.section import FramesSection
from edge.plc.wire import LENGTH, Decoder, Message, Type

WARM_UP = 10  # frames that are not counted
ANSWER_WAIT = 10.0  # s for a frame of the camera, and for line control to start and to answer
CONTROL_PARTS = 200  # parts that measure line control
CONTROL_PITCH = 0.01  # s between two of them
READY_WAIT = 0.2  # s until line control knows that the runtime is ready
PLC_BEAT = 0.05  # s between heartbeats of the PLC
END_WAIT = 5.0  # s for line control to end

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """Times of one stage in ms. ``per_part``: whether the next part waits for it."""

    name: str
    times: list[float]
    per_part: bool = True

    def at(self, share: float) -> float:
        """A percentile in ms (nearest rank)."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Budget:
    """What a line needs and has, in ms; rates in parts a second."""

    stages: list[Stage]
    available: float  # from the trigger until `lead_ms` before the ejector
    needed: float  # sum of the stages at p99.9
    lead: float
    lead_needed: float  # for a REJECT that is lost once, its repetition, and the acknowledgement
    busy: float  # sum of the stages that the next part waits for, at p99.9
    rate: float | None
    frame: tuple[int, ...] = ()  # height, width and channels of a camera frame

    @property
    def margin(self) -> float:
        """What is left at p99.9."""
        return self.available - self.needed

    @property
    def highest_rate(self) -> float:
        """The rate up to which the slowest part in a thousand does not delay the next one."""
        return 1000 / self.busy

    @property
    def highest_speed(self) -> float:
        """The highest safe speed of the belt, as a multiple of today's, at the same pitch of parts."""
        by_travel = (self.available + self.lead) / (self.needed + self.lead)
        return by_travel if self.rate is None else min(by_travel, self.highest_rate / self.rate)

    @property
    def fits(self) -> bool:
        """Whether no deadline is missed at p99.9."""
        fast_enough = self.rate is None or self.rate <= self.highest_rate
        return self.margin >= 0 and self.lead >= self.lead_needed and fast_enough


def measure(path: Path, *, precision: str, backend: str, frames: int, rate: float | None, progress: Progress,
            control_parts: int = CONTROL_PARTS) -> tuple[LineFile, Budget]:
    """Measure the stages of a line that does not run now.

    precision, backend: a name, or ``auto``. frames: how many to measure. rate: parts a second, where it is known.
    control_parts: how many parts measure line control. Raises what `lineside run` would raise.
    """
    file = read_line_file(path)
    chosen = choose(load_bundle(file.resolve(path, file.line.bundle)), precision, backend)
    threshold = chosen.threshold
    endless = [section.endless() for section in file.camera]
    camera = make_camera(endless, path.parent)
    camera.open()
    names = ("grab", "prepare", "infer", "filter and decide")
    times: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.closing(camera), Inspector(
            chosen.bundle, precision=chosen.precision, backend=chosen.backend, threads=file.line.threads) as inspector:
        inspector.warm_up()
        for number in range(WARM_UP + frames):
            size, found = _inspect(camera, len(endless), inspector, number, threshold)
            if number >= WARM_UP:
                for name, ms in zip(names, found, strict=True):
                    times[name].append(ms)
                progress("inspecting", number - WARM_UP + 1, frames)
    stages = [Stage(name, times[name]) for name in names]
    stages.append(Stage("line control", _control(control_parts, progress), per_part=False))
    wire, lead_needed = file.plc.wire_times()
    stages.append(Stage("wire", [wire], per_part=False))
    belt = file.belt
    return file, Budget(stages, belt.travel_ms - belt.lead_ms, sum(stage.at(0.999) for stage in stages), belt.lead_ms,
                        lead_needed, sum(stage.at(0.999) for stage in stages if stage.per_part), rate, size)


def _inspect(camera: Camera, views: int, inspector: Inspector, number: int,
             threshold: float) -> tuple[tuple[int, ...], list[float]]:
    """Inspect a part that has so many views.

    Returns the shape of its last frame, and ms for each stage, all views together.
    """
    total, shape = [0.0] * 4, (0, 0, 0)
    start = time.perf_counter()
    camera.expose(number + 1, number + 1, None, time.monotonic())
    for _ in range(views):
        frame = camera.next(ANSWER_WAIT)
        if frame is None or frame.image is None:
            raise CameraError("the camera delivered no frame",
                              got=frame.text if frame else f"nothing for {ANSWER_WAIT:g} s")
        grabbed = time.perf_counter()
        job = inspector.start(frame.image)
        prepared = time.perf_counter()
        inspector.wait(job)
        inferred = time.perf_counter()
        inspector.finish(job, threshold)
        shape = frame.image.shape
        moments = [start, grabbed, prepared, inferred, time.perf_counter()]
        spent = [1000 * (after - before) for before, after in itertools.pairwise(moments)]
        total = [before + ms for before, ms in zip(total, spent, strict=True)]
        start = time.perf_counter()
    return shape, total


def _control(parts: int, progress: Progress) -> list[float]:
    """ms from TRIGGER to VERDICT through the real process of line control on a pseudo serial port; the runtime answers
    at once.
    """
    near, far = os.openpty()
    tty.setraw(far)
    lifeline, held = os.pipe()
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{name}/control")
        listener.listen(1)
        job = ControlJob({"kind": "frames", "port": os.ttyname(far), "baud": 115200}, FramesSection.link,
                         BeltTiming(travel=0.5, lead=0.1), pulse_ms=10, parts=0, run_id=secrets.token_hex(8),
                         restarted=False, belt_file=Path(name) / "belt", listener=listener.fileno(),
                         supervisor=lifeline)
        process = start_control(job)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(f"{name}/control")
            try:
                return _round_trips(near, Channel(connection), parts, progress)
            finally:
                process.send_signal(signal.SIGTERM)
                os.close(held)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_WAIT)
                process.kill()
                process.wait()
                for descriptor in (near, far, lifeline):
                    os.close(descriptor)


class _FromLine(Decoder):
    """Decodes messages of the line instead of the PLC's."""

    def feed(self, data: bytes) -> list[Message]:
        self._buffer += data
        whole = len(self._buffer) // LENGTH * LENGTH
        blocks = [bytes(self._buffer[at:at + LENGTH]) for at in range(0, whole, LENGTH)]
        del self._buffer[:whole]
        return [Message.decode(block) for block in blocks]


def _round_trips(port: int, runtime: Channel, parts: int, progress: Progress) -> list[float]:
    """Play the PLC on ``port`` and the runtime. Returns ms from TRIGGER to VERDICT for each part."""
    reader, began, sent, times = _FromLine(), time.monotonic(), dict[int, float](), list[float]()
    part, beat, next_part = 0, 0.0, began + ANSWER_WAIT
    while len(times) < parts:
        now = time.monotonic()
        if now - began > ANSWER_WAIT + parts * CONTROL_PITCH:
            raise LinkError("line control does not answer", got=f"{len(times)} of {parts} verdicts")
        clock = int(1000 * (now - began))
        if now >= beat:
            os.write(port, Message(Type.PLC_HEARTBEAT, 1, 1, 0, 0, 0, clock).encode())
            beat = now + PLC_BEAT
        if now >= next_part and part < parts:
            part, next_part = part + 1, next_part + CONTROL_PITCH
            sent[part] = time.monotonic()
            os.write(port, Message(Type.TRIGGER, 0, 1, part, part, 0, clock).encode())
        ready, _, _ = select.select([port, runtime.fileno()], [], [], max(0.0, min(beat, next_part) - time.monotonic()))
        if port in ready:
            data, at = os.read(port, 4096), time.monotonic()
            for message in reader.feed(data):
                if message.type == Type.VERDICT and message.part in sent:
                    times.append(1000 * (at - sent.pop(message.part)))
                    progress("line control", len(times), parts)
                if message.type in (Type.VERDICT, Type.REJECT, Type.FAULT):
                    os.write(port, Message(Type.PLC_ACK, 0, 1, message.sequence, message.part, 0, clock).encode())
        for received in runtime.receive():
            if isinstance(received, Hello):
                runtime.send(RuntimeReady())
                next_part = time.monotonic() + READY_WAIT
            elif isinstance(received, Expose):
                runtime.send(PartVerdict(received.part, Verdict.PASS, None, 0.1, received.trigger))
    return times


def advice(budget: Budget, precision: str) -> list[str]:
    """What to change where a line misses its deadlines, the most helpful change first."""
    changes = []
    slowest = max((stage for stage in budget.stages if stage.per_part), key=lambda stage: stage.at(0.999))
    faster = ("`lineside quantize` and --precision auto, or a smaller preset" if slowest.name == "infer"
              and precision == "fp32"
              else "a smaller preset or a faster processor" if slowest.name == "infer" else "smaller frames")
    if budget.lead < budget.lead_needed:
        changes.append(f"lead_ms = {_up(budget.lead_needed)} at least: otherwise a REJECT that is lost once on "
                       "the wire comes too late")
    if budget.margin < 0:
        travel = _up(budget.needed + max(budget.lead, budget.lead_needed))
        changes.append(f"travel_ms = {travel} at least: move the ejector away from the camera, or slow the belt")
        if (spare := budget.lead - _up(budget.lead_needed)) >= -budget.margin:
            changes.append(f"or lead_ms = {_up(budget.lead_needed)}, which gives the verdict {spare:.0f} ms more")
        changes.append(f"or a shorter `{slowest.name}` ({slowest.at(0.999):.1f} ms at p99.9): {faster}")
    if budget.rate is not None and budget.rate > budget.highest_rate:
        changes.append(f"at most {budget.highest_rate:.1f} parts a second: `{slowest.name}` takes "
                       f"{slowest.at(0.999):.1f} ms of {budget.busy:.1f} at p99.9; {faster}")
    return changes


def _up(ms: float) -> int:
    """Rounded up to the next 5 ms."""
    return int(-(-ms // 5) * 5)

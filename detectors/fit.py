"""The fit loop: runs a detector's phases in order, within a budget of minutes or steps; stops and resumes."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from detectors.backbones import load_backbone
from detectors.batches import Prefetch, make_batch
from detectors.checkpoint import Checkpoint, checkpoint_path, read_checkpoint, write_checkpoint
from detectors.detector import Detector
from detectors.images import load_good_images, positions_differ
from detectors.natural import NaturalImages
from detectors.phases import Batch, Phase
from detectors.registry import detector_class
from detectors.run import RunRecord, claim_folder, write_run
from edge.base.errors import InputError

WARM_UP = 0.05  # share of a phase during which the learning rate rises
SAVE_EVERY = 60.0  # s between checkpoints
SWITCH = 2e-4  # s, Python's thread switch interval; its default of 5 ms makes a step 1/8 longer


@dataclass(frozen=True)
class Budget:
    """How long a fit takes: a number of steps (repeatable) or of minutes."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError("a fit takes either --minutes or --steps", got="both" if self.steps else "neither",
                             expected="one of them")
        if (self.minutes is not None and not 0 < self.minutes < math.inf) or (
                self.steps is not None and self.steps < 1):
            raise InputError("the budget of a fit must be positive",
                             got=self.minutes if self.steps is None else self.steps, expected="more than 0")

    def done(self, steps: int, seconds: float) -> float:
        """The share of the budget that is used; 1 or more at its end."""
        return steps / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1))


@dataclass(frozen=True)
class Progress:
    """What a fit reports after each step."""

    phase: str
    step: int
    share: float  # of the budget, 0..1
    loss: float  # running mean within the phase
    seconds_left: float


@dataclass(frozen=True)
class Settings:
    """What to fit, and on which extra data. None stands for the preset's value, or for what the packages contain."""

    detector: str
    preset: str = "edge"
    size: int | None = None  # side of the network's square input in px
    width: int | None = None  # scales the number of channels
    seed: int = 0
    backbone_weights: Path | None = None
    natural_images: Path | None = None
    arguments: Mapping[str, Any] | None = None  # more constructor arguments, such as those of an ablation
    tile: int | None = None  # side in px of the square tiles that frames are cut into; None: whole frames


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the fit stops after the current step and is saved."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: event.set()) for number in numbers}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def quick_switches() -> Iterator[None]:
    """Switch between Python's threads every `SWITCH` seconds."""
    previous = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(previous)


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def network_arguments(cls: type[Detector], settings: Settings) -> tuple[int, dict[str, Any]]:
    """The image size in px and all constructor arguments of a fit. Raises InputError for values out of range."""
    if settings.preset not in cls.presets:
        raise InputError("unknown preset", got=repr(settings.preset), expected=" or ".join(cls.presets))
    preset = cls.presets[settings.preset]
    size = preset.size if settings.size is None else settings.size
    if size < 64 or size % cls.stride:
        raise InputError("the image size does not fit the network", got=f"{size} px",
                         expected=f"a multiple of {cls.stride}, at least 64")
    if settings.tile is not None and settings.tile < 64:
        raise InputError("the tile is too small", got=f"{settings.tile} px", expected="at least 64 px")
    if settings.width is not None and not 1 <= settings.width <= 512:
        raise InputError("the width of the network is out of range", got=settings.width, expected="1 to 512")
    if not 0 <= settings.seed < 1 << 32:
        raise InputError("the seed is out of range", got=settings.seed, expected="0 to 4294967295")
    if settings.backbone_weights is not None and cls.backbone is None:
        raise InputError(f"{settings.detector} uses no backbone", got=f"--backbone-weights {settings.backbone_weights}",
                         expected="none")
    arguments = cls.defaults() | dict(preset.arguments)
    if settings.width is not None:
        arguments["width"] = settings.width
    if "size" in arguments:
        arguments["size"] = size
    return size, arguments | dict(settings.arguments or {})


def fit(settings: Settings, data: Path, out: Path, budget: Budget, *, resume: bool = False,
        report: Callable[[Progress], None] = lambda _: None) -> RunRecord:
    """Fit a detector on good images and write the run ``out``. With ``resume``, continue a stopped fit of that run.

    The same seed, steps, images and machine give the same weights, with or without a stop in between. SIGINT or
    SIGTERM stops the fit early: in the last phase a usable run is written; before that, InputError says how to resume.
    Also raises InputError for unusable input.
    """
    cls = detector_class(settings.detector)
    size, arguments = network_arguments(cls, settings)
    checkpoint = read_checkpoint(out) if resume else None
    if checkpoint is None and checkpoint_path(out).exists():
        raise InputError(f"an earlier fit of {out} was stopped", got=str(checkpoint_path(out)),
                         expected="no checkpoint", next="Add --resume to continue it, or remove that file.")
    temporary = claim_folder(out, "run", replace=checkpoint is not None)
    try:
        return _Fit(cls, settings, size, arguments, data, out, temporary, budget, checkpoint, report).run()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a success it has been renamed


class _Fit:
    """One fit: the network, its progress, and its steps."""

    def __init__(self, cls: type[Detector], settings: Settings, size: int, arguments: dict[str, Any], data: Path,
                 out: Path, temporary: Path, budget: Budget, checkpoint: Checkpoint | None,
                 report: Callable[[Progress], None]) -> None:
        self.settings, self.size, self.arguments, self.data = settings, size, arguments, data
        self.out, self.temporary, self.budget, self.report = out, temporary, budget, report
        self.natural = NaturalImages(settings.natural_images)
        self.good = load_good_images(data, size, size, cls.channels, settings.seed, settings.tile)
        affinity = hasattr(os, "sched_getaffinity")
        self.threads = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(1)  # batches are prepared in their own thread
        torch.use_deterministic_algorithms(True)
        # A debugging aid that costs time:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.manual_seed(settings.seed)
        self.backbone: str | None = None
        backbone = None
        if cls.backbone is not None:
            backbone, self.backbone = load_backbone(cls.backbone, settings.backbone_weights)
        cls.settle(arguments, self.good.pixels, backbone)
        self.network = cls(**arguments)
        # torch's stubs lack this form of `to`.
        # Before the backbone is taken: its own memory format decides the last digits of its features.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if backbone is not None:
            self.network.use_backbone(backbone)
        self.good = replace(self.good, pixels=self.network.prepare(self.good.pixels))
        self.fixture = settings.tile is None and positions_differ(self.good.pixels)
        self.phases: list[Phase] = self.network.phases(size)
        self.low_precision = bfloat16_is_fast()
        identity = {"detector": settings.detector, "arguments": arguments, "size": size, "seed": settings.seed,
                    "images": self.good.fingerprint, "backbone": self.backbone, "natural images": self.natural.source}
        if settings.tile is not None:
            identity["tile"] = settings.tile
        self.state = checkpoint or Checkpoint(identity)
        self.state.check(identity, out)
        self.optimizer: torch.optim.Adam
        self.saved = time.monotonic()

    def run(self) -> RunRecord:
        state = self.state
        self.begin = time.monotonic() - state.seconds
        if state.network:
            self.network.load_state_dict(state.network)
        with stop_on_signal() as stop, quick_switches():
            while state.phase < len(self.phases) and not stop.is_set():
                if self._phase(self.phases[state.phase], stop):
                    state.phase, state.phase_step, state.started, state.optimizer = state.phase + 1, 0, False, {}
        if not state.history:
            raise InputError("the fit was interrupted before its first step", expected="at least one step",
                             next="Run the same command again.")
        interrupted = state.phase < len(self.phases)
        self._save()
        if interrupted and (state.phase < len(self.phases) - 1 or state.phase_step == 0):
            phase = f"phase {state.phase + 1} of {len(self.phases)}"
            raise InputError(f"the fit was interrupted in {phase}, before it can detect defects",
                             got=f"{len(state.history)} steps", expected="its last phase",
                             next="Run the same command with --resume.")
        self.network.eval()
        with torch.no_grad():
            self.network.finish(self.good.pixels)
        record = RunRecord(
            self.settings.detector, self.arguments, self.size, self.size, str(self.data), self.good.fingerprint,
            self.settings.seed, len(state.history), round(state.seconds / 60, 3), interrupted,
            "bfloat16" if self.low_precision else "float32", self.threads, torch.__version__, self.backbone,
            self.natural.source, self.good.sizes, self.good.fitted, self.good.held_out, self.settings.tile,
        )
        write_run(self.out, self.temporary, record, self.network.state_dict(), state.history)
        if not interrupted:
            checkpoint_path(self.out).unlink(missing_ok=True)
        return record

    def _phase(self, phase: Phase, stop: threading.Event) -> bool:
        """Run a phase, or the rest of it. Returns whether it was completed."""
        state = self.state
        if not state.started and phase.start is not None:
            self.network.eval()
            phase.start(self.good.pixels)
        state.started = True
        freeze_all_but(self.network, phase.trained)
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=phase.learning_rate, betas=phase.betas,
                                          weight_decay=phase.weight_decay)
        if state.optimizer:
            self.optimizer.load_state_dict(state.optimizer)
        first = sum(earlier.share for earlier in self.phases[:state.phase])
        smooth = 0.0

        views = replace(phase.views, mirror=False) if self.fixture else replace(phase.views, grid=1)
        phase = replace(phase, views=views)

        def make(step: int) -> Batch:
            seed = (self.settings.seed, state.phase, step)
            return make_batch(self.network, phase, self.good.pixels, self.natural, seed)

        prefetch = Prefetch(make, state.phase_step)
        try:
            while (share := (self._done() - first) / phase.share) < 1 - 1e-9:
                if stop.is_set():
                    return False
                share = max(share, 0.0)
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(phase.learning_rate, share)
                terms = self._step(phase, prefetch)
                prefix = "" if len(self.phases) == 1 else f"{phase.name}: "
                loss = sum(terms.values())
                smooth = loss if state.phase_step == 0 or smooth == 0 else 0.98 * smooth + 0.02 * loss
                state.history.append({prefix + name: term for name, term in terms.items()})
                state.phase_step += 1
                state.seconds = time.monotonic() - self.begin
                done = max(self._done(), 1e-9)
                left = max(0.0, state.seconds / done - state.seconds)
                self.report(Progress(phase.name, len(state.history), min(done, 1.0), smooth, left))
                if time.monotonic() - self.saved > SAVE_EVERY:
                    self._save()
        finally:
            prefetch.close()
        return True

    def _done(self) -> float:
        return self.budget.done(len(self.state.history), time.monotonic() - self.begin)

    def _step(self, phase: Phase, prefetch: Prefetch) -> dict[str, float]:
        batch = prefetch.take()
        # The same noise in each step, with or without a stop before it:
        torch.manual_seed(hash((self.settings.seed, self.state.phase, self.state.phase_step)))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            terms = phase.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _save(self) -> None:
        self.state.network = self.network.state_dict()
        self.state.optimizer = self.optimizer.state_dict() if self.state.phase_step else {}
        write_checkpoint(self.out, self.state)
        self.saved = time.monotonic()


def learning_rate(highest: float, share: float) -> float:
    """The rate after a ``share`` (0..1) of a phase: a linear warm-up, then half a cosine down to a hundredth."""
    return highest * min(1.0, 0.02 + share / WARM_UP) * (0.01 + 0.99 * math.cos(math.pi / 2 * share) ** 2)


def freeze_all_but(network: nn.Module, trained: tuple[str, ...]) -> None:
    """Train the named modules and parameters (all if none is named); freeze the others, batch norms included."""
    if not trained:
        network.train().requires_grad_(True)
        return
    network.eval().requires_grad_(False)
    for name in trained:
        part: nn.Module | Tensor = attrgetter(name)(network)
        part.requires_grad_(True)
        if isinstance(part, nn.Module):
            part.train()

"""The fit loop: batches prepared ahead of the step, a budget of minutes or steps, an end at any moment."""

from __future__ import annotations

import inspect
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images import load_good_images
from detectors.registry import detector_class
from detectors.run import RunRecord, claim_folder, write_run
from edge.prepare import InputError

WARM_UP = 0.05  # share of the fit over which the learning rate rises
CLEAN_SHARE = 0.15  # of the images of a batch that stay good
AHEAD = 4  # batches prepared before they are needed


@dataclass(frozen=True)
class Budget:
    """How long a fit takes: a number of steps (repeatable) or of minutes."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError("a fit takes either --minutes or --steps", got="both" if self.steps else "neither", expected="one of them")
        if (self.minutes is not None and not 0 < self.minutes < math.inf) or (self.steps is not None and self.steps < 1):
            raise InputError("the budget of a fit is positive", got=self.minutes if self.steps is None else self.steps,
                             expected="more than 0")

    def done(self, steps: int, seconds: float) -> float:
        """The share of the budget that is used up, 1 or more at its end."""
        return steps / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1))


@dataclass(frozen=True)
class Progress:
    """What a fit tells after each step."""

    step: int
    share: float  # of the budget, 0..1
    loss: float  # running mean
    seconds_left: float


def augment(image: NDArray[np.uint8], crop: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random crop of a good image ``[H, W, C]``, mirrored at random, in other light and with sensor noise; float32 in 0..1."""
    height, width = image.shape[:2]
    y, x = int(rng.integers(0, height - crop + 1)), int(rng.integers(0, width - crop + 1))
    part = image[y:y + crop, x:x + crop].astype(np.float32) / 255
    if rng.random() < 0.5:
        part = part[::-1]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    ys, xs = np.mgrid[-1:1:crop * 1j, -1:1:crop * 1j].astype(np.float32)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.12)
    light = rng.uniform(0.9, 1.1) * (1 + slope * (np.cos(angle) * xs + np.sin(angle) * ys))
    lit = np.clip(part * light[..., None] + rng.uniform(-0.05, 0.05), 0, 1) ** np.exp(rng.uniform(-0.1, 0.1))
    noise = rng.standard_normal(part.shape, dtype=np.float32) * rng.uniform(0, 0.015)
    return np.asarray(np.clip(lit + noise, 0, 1), dtype=np.float32)


def make_batch(network: Any, pixels: NDArray[np.uint8], crop: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The images ``[N, C, crop, crop]`` and masks ``[N, 1, crop, crop]`` of a step: a function of seed and step alone."""
    rng = np.random.default_rng((seed, step))
    images, masks = [], []
    for _ in range(network.batch_size):
        image = augment(pixels[rng.integers(len(pixels))], crop, rng)
        mask = np.zeros((crop, crop, 1), np.float32)
        if rng.random() >= CLEAN_SHARE:
            image, mask = network.make_defects(image, rng)
        images.append(image)
        masks.append(mask)
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(np.stack(masks)).permute(0, 3, 1, 2).contiguous())


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that a fit ends after its step and is saved."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def fit(detector: str, data: Path, out: Path, budget: Budget, *, seed: int = 0, size: int = 256, width: int | None = None,
        report: Callable[[Progress], None] = lambda _: None) -> RunRecord:
    """Fit a detector on good images and write the run ``out``.

    size: side of the network's square input in px; width: scales the network's channels (None: the paper's).
    The same seed, number of steps, images and machine give the same weights. Raises InputError for unusable input;
    an interruption by SIGINT or SIGTERM ends the fit early and still writes the run.
    """
    cls = detector_class(detector)
    if size < 64 or size % cls.stride:
        raise InputError("the image size does not fit the network", got=f"{size} px", expected=f"a multiple of {cls.stride}, at least 64")
    if width is not None and not 1 <= width <= 64:
        raise InputError("the width of the network is out of range", got=width, expected="1 to 64")
    if not 0 <= seed < 1 << 32:
        raise InputError("the seed is out of range", got=seed, expected="0 to 4294967295")
    temporary = claim_folder(out, "run")
    try:
        return _fit(cls, detector, data, out, temporary, budget, seed, size, width, report)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # already renamed where all went well


def _fit(cls: Any, detector: str, data: Path, out: Path, temporary: Path, budget: Budget, seed: int, size: int,
         width: int | None, report: Callable[[Progress], None]) -> RunRecord:
    good = load_good_images(data, size, size, cls.channels, seed)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)  # batches are prepared in a thread of their own
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    arguments = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    if width is not None:
        arguments["width"] = width
    network = cls(**arguments).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=network.learning_rate)
    low_precision = bfloat16_is_fast()
    crop = max(64, size // 2 // cls.stride * cls.stride)
    history: list[dict[str, float]] = []
    smooth = 0.0
    with stop_on_signal() as stop, ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(make_batch, network, good.pixels, crop, seed, step) for step in range(AHEAD)]
        start = time.monotonic()
        while not stop.is_set() and (share := budget.done(len(history), time.monotonic() - start)) < 1:
            rate = network.learning_rate * min(1.0, 0.02 + share / WARM_UP) * (0.01 + 0.99 * math.cos(math.pi / 2 * share) ** 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, masks = ahead.pop(0).result()
            ahead.append(pool.submit(make_batch, network, good.pixels, crop, seed, len(history) + AHEAD))
            with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
                terms = network.losses(images, masks)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append({name: float(term.detach()) for name, term in terms.items()})
            smooth = float(loss.detach()) if len(history) == 1 else 0.98 * smooth + 0.02 * float(loss.detach())
            seconds = time.monotonic() - start
            share = max(budget.done(len(history), seconds), 1e-9)
            report(Progress(len(history), min(share, 1.0), smooth, max(0.0, seconds / share - seconds)))
        minutes = (time.monotonic() - start) / 60
        for future in ahead:
            future.cancel()
        interrupted = stop.is_set()
        if not history:
            raise InputError("the fit was interrupted before its first step", expected="at least one step", next="Start it again.")
        record = RunRecord(
            detector, arguments, size, size, str(data), good.fingerprint, seed, len(history), round(minutes, 3), interrupted,
            "bfloat16" if low_precision else "float32", threads, torch.__version__, good.sizes, good.fitted, good.held_out,
        )
        write_run(out, temporary, record, network.state_dict(), history)
    return record

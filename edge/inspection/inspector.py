"""Frames through engine, post-filter and rule: the same code for the line, for `lineside inspect` and for
calibration.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import EngineError
from edge.bundle.bundle import Bundle
from edge.bundle.rule import Blob, Rule
from edge.engines.backends import get_backend
from edge.engines.engine import GROUP, Mode, Precision, Slot
from edge.images.frames import Frame, prepare_frame
from edge.images.maps import MapArray, MapPool
from edge.images.tiles import Tiles
from edge.inspection.choice import pick_backend
from edge.part.verdict import Verdict

ENGINE_TIMEOUT = 10.0  # s; an inference that takes longer has hung
TILED_FRAMES = 2  # tiled frames in flight: the second one follows the first without a pause
TILES_AT_ONCE = 8  # tiles blended at a time: each wake-up of this thread takes a core from the engine


@dataclass(frozen=True)
class Inspection:
    """The result for a frame. Without a threshold there is no verdict, and there are no blobs."""

    verdict: Verdict | None
    score: float
    threshold: float | None
    blobs: list[Blob]
    raw: MapArray  # [h, w], the network's output
    grey: MapArray  # [h, w], post-filtered
    defective: NDArray[np.bool_]  # [h, w], the pixels of the blobs


class Job:
    """A frame in flight. ``error``: why there is no result."""

    def __init__(self, frame: Frame, rule: Rule, pool: MapPool) -> None:
        self.frame, self.rule, self._pool = frame, rule, pool
        self.images = 1  # to infer
        self.raw: MapArray | None = None  # [h, w], once all images are inferred
        self.error: Exception | None = None

    def prepare(self, index: int, out: Frame) -> None:
        """Write image ``index`` into the engine's memory, uint8 ``[H, W, C]``."""
        prepare_frame(self.frame, out)

    def deposit(self, index: int, image_map: MapArray) -> None:
        """Copy the map of image ``index``, float32 ``[h, w]``, out of the engine's memory."""
        self.raw = self._pool.take(image_map.shape)
        np.copyto(self.raw, image_map)


class TiledJob(Job):
    """A frame in flight that is cut into tiles."""

    def __init__(self, frame: Frame, rule: Rule, pool: MapPool, tiles: Tiles) -> None:
        super().__init__(frame, rule, pool)
        self.images = len(tiles)
        self._tiles, self._left = tiles, len(tiles)
        self._blended = pool.take(tiles.map_size)
        self._blended.fill(0)

    def prepare(self, index: int, out: Frame) -> None:
        """Write tile ``index`` into the engine's memory."""
        prepare_frame(self._tiles.cut(self.frame, index), out)

    def deposit(self, index: int, image_map: MapArray) -> None:
        """Blend the map of tile ``index`` with the others."""
        self._tiles.add(index, image_map, self._blended)
        self._left -= 1
        if not self._left:
            self.raw = self._blended


class Inspector:
    """A bundle on an engine. For one thread at a time.

    The images of all frames in flight wait in one queue; whenever a slot is free, it takes as many as it holds. So the
    engine never waits for the work on its results, and no image waits for others to fill a batch.
    """

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", backend: str | None = None, threads: int = 0,
                 mode: Mode = "single") -> None:
        """backend: a name; None: `pick_backend` decides. threads: of the engine; 0: all cores that this process may
        use.

        mode: ``single``: one frame in flight; ``latency``: also the next one, which waits for all threads;
        ``throughput``: one on each thread, or batches on a GPU, and some more, see `group`.
        Raises EngineError or BundleError.
        """
        self.bundle, self.precision = bundle, precision
        self.backend = backend or pick_backend(bundle, precision=precision)
        runs_on, card = get_backend(self.backend), bundle.card.input
        tiled = bundle.decision.tile is not None  # then one frame is enough to give each thread a tile
        layout = runs_on.layout("throughput" if tiled else mode, threads or len(os.sched_getaffinity(0)))
        slots = layout.slots + (runs_on.tiles_ahead if tiled else 0)
        self._engine = runs_on.make_engine(bundle.graph(precision), (card.height, card.width, card.channels),
                                           precision=precision, threads=threads, slots=slots, batch=layout.batch,
                                           streams=layout.streams, cached=mode != "single")
        self._free = [self._engine.lease() for _ in range(slots)]
        self._waiting: deque[tuple[Job, int]] = deque()  # images
        self._running: deque[tuple[Slot, list[tuple[Job, int]]]] = deque()
        self._jobs, self._most = 0, slots * layout.batch if not tiled else 1 if mode == "single" else TILED_FRAMES
        self._streams, self._groups = layout.streams, mode == "throughput" and not tiled and runs_on.groups
        if self._groups:
            self._most = layout.streams + 1
        self.together = 1  # frames whose results are collected at once when there is no room for more
        self._at_once = TILES_AT_ONCE if tiled and runs_on.tiles_ahead else 1
        self._plans: dict[tuple[int, int], tuple[Rule, Tiles | None]] = {}
        self._pool = MapPool()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine; frames in flight are dropped."""
        self._waiting.clear()
        while self._running:
            self._collect()
        for slot in self._free:
            slot.release()
        self._engine.close()

    def check(self, frame: Frame) -> tuple[Rule, Tiles | None]:
        """The rule and the tiles for a frame's size, made once for each size. Raises InputError for a frame that does
        not fit the model.
        """
        self.bundle.check(frame)
        size = (frame.shape[0], frame.shape[1])
        if size not in self._plans:
            if len(self._plans) > 256:  # frames of ever new sizes must not fill the memory
                self._plans.clear()
            rule, tiles = self.bundle.rule(size), self.bundle.tiles(size)
            if tiles is not None:
                tiles.keep(rule.region)
            self._plans[size] = rule, tiles
        return self._plans[size]

    def warm_up(self) -> float:
        """Run every stream twice on black images, so that the first frame is as fast as the next.

        Returns the time from one result to the next, in s.
        """
        slots = self._free[-self._streams:]
        for _ in range(2):
            begin = time.perf_counter()
            for slot in slots:
                slot.input[:] = 0
                slot.start(1)
            for slot in slots:
                slot.wait(ENGINE_TIMEOUT)
        return (time.perf_counter() - begin) / len(slots)

    def group(self, interval: float, hold: float) -> None:
        """Set `together` for frames that arrive every ``interval`` s so that no result is held longer than ``hold`` s.

        Each wake-up of this thread, and of the threads that take its verdicts, slows down a fast network's inference.
        """
        if self._groups:
            self.together = min(GROUP, 1 + int(hold / interval))
            self._most = self._streams + self.together

    @property
    def room(self) -> int:
        """How many more frames may be started."""
        return self._most - self._jobs

    def start(self, frame: Frame) -> Job:
        """Start the inference of a frame. `finish` must follow, in the order of the starts.

        Raises InputError for a frame that does not fit the model.
        """
        rule, tiles = self.check(frame)
        job = Job(frame, rule, self._pool) if tiles is None else TiledJob(frame, rule, self._pool, tiles)
        self._jobs += 1
        self._waiting.extend((job, index) for index in range(job.images))
        self._pump()
        return job

    def _pump(self) -> None:
        """Give waiting images to free slots."""
        while self._waiting and self._free:
            slot = self._free.pop()
            images = [self._waiting.popleft() for _ in range(min(len(slot.input), len(self._waiting)))]
            try:
                for (job, index), out in zip(images, slot.input, strict=False):
                    job.prepare(index, out)
                slot.start(len(images))
            except Exception as error:  # raised by `finish`
                self._free.append(slot)
                for job, _ in images:
                    job.error = error
            else:
                self._running.append((slot, images))

    def _collect(self, number: int = 0) -> None:
        """Wait for running inference ``number`` (0: the oldest) and hand out its maps; for tiles of one frame, several
        at once.
        """
        job, together = self._running[number][1][0][0], 1
        most = min(self._at_once, len(self._running) - number)
        while together < most and self._running[number + together][1][0][0] is job:
            together += 1
        if together > 1:
            with contextlib.suppress(EngineError):  # raised by `_hand_out` when its turn comes
                self._running[number + together - 1][0].wait(ENGINE_TIMEOUT)
        while together and self._hand_out(number):
            together -= 1

    def _hand_out(self, number: int) -> bool:
        """Wait for an inference and give its maps to their frames. Returns whether it succeeded."""
        slot, images = self._running[number]
        del self._running[number]
        failed = None
        try:
            for (job, index), image_map in zip(images, slot.wait(ENGINE_TIMEOUT), strict=True):
                job.deposit(index, image_map[0])
        except Exception as error:
            failed = error
            for job, _ in images:
                job.error = error
        self._free.append(slot)
        self._pump()
        return failed is None

    def finish(self, job: Job, threshold: float | None) -> Inspection:
        """Wait for the inference, and decide. REJECT means score > threshold; the rule then finds at least one blob.

        Raises EngineError if the inference fails.
        """
        self.wait(job)
        self._jobs -= 1
        if job.error is not None:
            raise job.error
        assert job.raw is not None
        rule, raw = job.rule, job.raw
        grey = rule.grey(raw, self._pool)
        score = rule.score(grey)
        if threshold is None:
            return Inspection(None, score, None, [], raw, grey, np.zeros(grey.shape, bool))
        if score <= threshold:
            return Inspection(Verdict.PASS, score, threshold, [], raw, grey, np.zeros(grey.shape, bool))
        blobs, defective = rule.blobs(grey, threshold)
        return Inspection(Verdict.REJECT, score, threshold, blobs, raw, grey, defective)

    def wait(self, job: Job) -> None:
        """Wait until a frame's map is complete, or its inference has failed."""
        while job.raw is None and job.error is None:
            self._collect(next((number for number, (_, images) in enumerate(self._running) if images[0][0] is job), 0))

    def inspect(self, frame: Frame, threshold: float | None) -> Inspection:
        """Inspect a frame. Raises InputError or EngineError."""
        return self.finish(self.start(frame), threshold)

    def raw_map(self, frame: Frame) -> MapArray:
        """A copy of the raw map of a frame of any size, float32 ``[h, w]``. Raises EngineError if the inference
        fails.
        """
        slot = self._free[-1]
        prepare_frame(frame, slot.input[0])
        slot.start(1)
        return slot.wait(ENGINE_TIMEOUT)[0, 0].copy()

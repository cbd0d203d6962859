"""One frame through the engine, the post-filter and the rule: the same code for the line, for `inspect` and for calibration."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.decision import Backend, Precision
from edge.engines import Slot, pick_backend, pick_engine
from edge.prepare import Frame, prepare_frame
from edge.rule import Blob, MapArray, Rule
from edge.verdict import Verdict

ENGINE_TIMEOUT = 10.0  # s; an inference that takes longer has hung


@dataclass(frozen=True)
class Inspection:
    """What is known of a frame. Without a threshold there is no verdict and there are no blobs."""

    verdict: Verdict | None
    score: float
    threshold: float | None
    blobs: list[Blob]
    raw: MapArray  # [h, w], as the network gave it
    grey: MapArray  # [h, w], post-filtered
    defective: NDArray[np.bool_]  # [h, w], the pixels of the blobs


@dataclass(frozen=True)
class Job:
    """A frame under way: prepared in a slot, whose inference was started."""

    frame: Frame
    rule: Rule
    slot: Slot


class Inspector:
    """A bundle on an engine. Not for several threads at once."""

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", backend: Backend | None = None, threads: int = 0,
                 slots: int = 1) -> None:
        """backend: None for the one that `pick_backend` picks. threads: of the engine; 0 for as many as there are cores.

        slots: frames that may be under way at once. Raises EngineError or BundleError.
        """
        self.bundle, self.precision = bundle, precision
        self.backend: Backend = backend or pick_backend(bundle, precision=precision)
        self._engine = pick_engine(bundle, backend=self.backend, precision=precision, threads=threads, slots=slots)
        self._free = [self._engine.lease() for _ in range(slots)]
        self._sizes = bundle.sizes
        self._rules: dict[tuple[int, int], Rule] = {}

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine."""
        for slot in self._free:
            slot.release()
        self._engine.close()

    def rule(self, frame_size: tuple[int, int]) -> Rule:
        """The rule for frames of (height, width) px, worked out once for each size."""
        if frame_size not in self._rules:
            if len(self._rules) > 256:  # images of ever new sizes must not fill the memory
                self._rules.clear()
            self._rules[frame_size] = self.bundle.rule(frame_size)
        return self._rules[frame_size]

    def warm_up(self) -> None:
        """Run each slot once on black, so that the first frame is as fast as the next."""
        for slot in self._free:
            slot.input[:] = 0
            slot.start(1)
            slot.wait(ENGINE_TIMEOUT)

    @property
    def room(self) -> int:
        """How many more frames may be started."""
        return len(self._free)

    def start(self, frame: Frame) -> Job:
        """Prepare a frame in a free slot and start its inference; `finish` has to follow, in the same order.

        Raises InputError for a frame that does not fit the model, EngineError when the inference cannot be started.
        """
        self._sizes.check(frame)
        rule = self.rule((frame.shape[0], frame.shape[1]))
        slot = self._free.pop()
        try:
            prepare_frame(frame, slot.input[0])
            slot.start(1)
        except BaseException:
            self._free.append(slot)
            raise
        return Job(frame, rule, slot)

    def finish(self, job: Job, threshold: float | None) -> Inspection:
        """Wait for the inference, and judge. REJECT is score > threshold, and then, by the rule, there is at least one blob.

        Raises EngineError when the inference fails.
        """
        rule = job.rule
        try:
            raw = job.slot.wait(ENGINE_TIMEOUT)[0, 0].copy()
        finally:
            self._free.append(job.slot)
        grey = rule.grey(raw)
        score = rule.score(grey)
        if threshold is None:
            return Inspection(None, score, None, [], raw, grey, np.zeros(grey.shape, bool))
        if score <= threshold:
            return Inspection(Verdict.PASS, score, threshold, [], raw, grey, np.zeros(grey.shape, bool))
        blobs, defective = rule.blobs(grey, threshold)
        return Inspection(Verdict.REJECT, score, threshold, blobs, raw, grey, defective)

    def inspect(self, frame: Frame, threshold: float | None) -> Inspection:
        """Inspect a frame. Raises InputError or EngineError."""
        return self.finish(self.start(frame), threshold)

    def raw_map(self, frame: Frame) -> MapArray:
        """The raw map of a frame of any size (a copy), float32 ``[h, w]``. Raises EngineError when the inference fails."""
        slot = self._free[-1]
        prepare_frame(frame, slot.input[0])
        slot.start(1)
        return slot.wait(ENGINE_TIMEOUT)[0, 0].copy()

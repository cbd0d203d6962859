"""A backend in one file: it runs a bundle's graph on ONNX's reference implementation. The registry needs one line for
it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from edge.base.finding import Finding
from edge.engines.engine import Backend


class Toy(Backend):
    """Runs a graph node by node."""

    name = "toy"
    package = "onnx"
    install = "Run `pip install onnx`."
    precisions = ("fp32",)

    def device_name(self) -> str:
        return f"onnx {onnx.__version__}"

    def make_engine(self, graph, input_size, *, precision, threads, slots, batch, streams=1, cached=False):
        return ToyEngine(graph, input_size, slots, batch)

    def doctor(self, root: Path) -> Iterator[Finding]:
        yield Finding("toy engine", "ok", self.device_name())


class ToyEngine:
    """Slots that all run on one evaluator."""

    def __init__(self, graph: Path, input_size: tuple[int, int, int], slots: int, batch: int) -> None:
        self.evaluator = ReferenceEvaluator(str(graph))
        self.free: queue.SimpleQueue[ToySlot] = queue.SimpleQueue()
        for _ in range(slots):
            self.free.put(ToySlot(self, (batch, *input_size)))

    def lease(self):
        return self.free.get()

    def close(self) -> None:
        self.free = queue.SimpleQueue()


class ToySlot:
    """Runs its inference when it is waited for."""

    def __init__(self, engine: ToyEngine, shape: tuple[int, ...]) -> None:
        self.input, self._engine, self._n = np.zeros(shape, np.uint8), engine, 0

    def start(self, n: int) -> None:
        self._n = n

    def wait(self, timeout: float):
        evaluator = self._engine.evaluator
        return evaluator.run(None, {evaluator.input_names[0]: self.input[: self._n]})[0]

    def release(self) -> None:
        self._engine.free.put(self)

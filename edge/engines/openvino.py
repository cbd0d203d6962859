"""OpenVINO on the processor: each slot is an infer request over numpy memory that both sides share."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import EngineError
from edge.base.finding import Finding
from edge.engines.engine import Backend, Engine, Precision
from edge.images.maps import MapArray


class OpenVino(Backend):
    """The engine of the base installation, and the only one that runs the float32 graph in bfloat16."""

    name = "openvino"
    package = "openvino"
    install = "Run `pip install openvino`."
    precisions = ("fp32", "bf16", "fp16", "int8")
    automatic = True

    def device_name(self) -> str:
        from edge.engines.openvino_graphs import device_name

        return device_name()

    def make_engine(self, graph: Path, input_size: tuple[int, int, int], *, precision: Precision, threads: int,
                    slots: int, batch: int, streams: int = 1, cached: bool = False) -> Engine:
        return OpenVinoEngine(graph, input_size, precision=precision, threads=threads, slots=slots, batch=batch,
                              streams=streams, cached=cached)

    def doctor(self, root: Path) -> Iterator[Finding]:
        if not self.installed():
            yield Finding("OpenVINO", "missing", "not installed", "pip install openvino")
            return
        from edge.engines.openvino_graphs import device_name, runs_bfloat16

        yield Finding("OpenVINO", "ok", device_name() + (", with bfloat16" if runs_bfloat16() else ""))


class OpenVinoSlot:
    """An infer request with its input buffer, uint8 ``[batch, H, W, C]``."""

    def __init__(self, compiled: Any, shape: tuple[int, ...], free: queue.SimpleQueue[OpenVinoSlot]) -> None:
        import openvino as ov

        self.input: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(ov.Tensor(self.input, shared_memory=True))
        self._output: MapArray = np.zeros(tuple(compiled.output(0).shape), np.float32)
        self._request.set_output_tensor(ov.Tensor(self._output, shared_memory=True))
        self._free = free
        self._n = 0

    def start(self, n: int) -> None:
        self._n = n
        try:
            self._request.start_async()
        except RuntimeError as error:
            raise EngineError("OpenVINO could not start an inference", got=_first_line(error)) from error

    def wait(self, timeout: float) -> MapArray:
        try:
            done = self._request.wait_for(int(timeout * 1000))
        except RuntimeError as error:
            raise EngineError("an inference failed on OpenVINO", got=_first_line(error)) from error
        if not done:
            self._request.cancel()
            raise EngineError("an inference did not end in time", got=f"more than {timeout:g} s")
        return self._output[: self._n]

    def release(self) -> None:
        self._free.put(self)


class OpenVinoEngine:
    """A compiled ONNX graph with a fixed batch and a number of slots."""

    def __init__(self, graph: Path, input_size: tuple[int, int, int], *, precision: str, threads: int, slots: int,
                 batch: int, streams: int = 1, cached: bool = False) -> None:
        """input_size: (height, width, channels). threads: 0 for all cores that this process may use. streams:
        inferences that run at the same time and share the threads. cached: use the cache of compiled models. Raises
        EngineError.
        """
        from edge.engines.openvino_graphs import PRECISION_HINTS, cached_model, compile_model

        if precision not in PRECISION_HINTS:
            raise EngineError("OpenVINO does not run this precision", got=repr(precision),
                              expected="one of " + ", ".join(PRECISION_HINTS))
        shape = (batch, *input_size)
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
            "NUM_STREAMS": streams,
        }
        try:
            compiled = cached_model(graph, shape, settings) if cached else compile_model(graph, shape, settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {graph}", got=_first_line(error),
                              next="Run `lineside export` again.") from error
        self._free: queue.SimpleQueue[OpenVinoSlot] = queue.SimpleQueue()
        for _ in range(slots):
            self._free.put(OpenVinoSlot(compiled, shape, self._free))

    def lease(self) -> OpenVinoSlot:
        return self._free.get()

    def close(self) -> None:
        while not self._free.empty():
            self._free.get()


def _first_line(error: BaseException) -> str:
    """The first line of an error; the rest are places in OpenVINO's source code."""
    return (str(error).splitlines() or [type(error).__name__])[0]

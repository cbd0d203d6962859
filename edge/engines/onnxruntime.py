"""ONNX Runtime, the portable engine: on the processor, or on a GPU through its CUDA or TensorRT provider."""

from __future__ import annotations

import concurrent.futures
import os
import platform
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import EngineError
from edge.base.files import cache_folder
from edge.base.finding import Finding
from edge.engines.engine import Backend, Engine, Precision
from edge.images.maps import MapArray

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class OnnxRuntime(Backend):
    """ONNX Runtime on the processor."""

    name = "onnxruntime"
    package = "onnxruntime"
    install = "Run `pip install 'lineside[onnxruntime]'`."
    precisions = ("fp32", "fp16", "int8")
    automatic = True
    provider = CPU

    def device_name(self) -> str:
        where = platform.processor() or platform.machine() if self.provider == CPU else self.provider
        return f"{where}, ONNX Runtime {_import_onnxruntime().__version__}"

    def make_engine(self, graph: Path, input_size: tuple[int, int, int], *, precision: Precision, threads: int,
                    slots: int, batch: int, streams: int = 1, cached: bool = False) -> Engine:
        if precision not in self.precisions:
            raise EngineError("ONNX Runtime does not run this precision", got=repr(precision),
                              expected="one of " + ", ".join(self.precisions))
        return OnnxRuntimeEngine(graph, input_size, backend=self.name, provider=self.provider, threads=threads,
                                 slots=slots, batch=batch, streams=streams)

    def doctor(self, root: Path) -> Iterator[Finding]:
        if not self.installed():
            yield Finding("ONNX Runtime", "improvable", "not installed",
                          "pip install 'lineside[onnxruntime]', if you want it")
            return
        ort = _import_onnxruntime()
        yield Finding("ONNX Runtime", "ok", f"{ort.__version__} with " + ", ".join(ort.get_available_providers()))


class OnnxRuntimeCuda(OnnxRuntime):
    """ONNX Runtime on a GPU by its CUDA provider."""

    name = "onnxruntime-cuda"
    automatic = False
    provider = CUDA

    def doctor(self, root: Path) -> Iterator[Finding]:
        return iter(())  # the finding about ONNX Runtime lists its providers


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """ONNX Runtime on a GPU by its TensorRT provider."""

    name = "onnxruntime-tensorrt"
    provider = TENSORRT


def _import_onnxruntime() -> Any:
    """The package. Raises EngineError if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("ONNX Runtime is not installed", got=str(error), next=OnnxRuntime.install) from error
    return onnxruntime


class OnnxRuntimeSlot:
    """An input buffer, uint8 ``[batch, H, W, C]``, and the inference that reads it."""

    def __init__(self, engine: OnnxRuntimeEngine, shape: tuple[int, ...]) -> None:
        self.input: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self._engine = engine
        self._options = engine.ort.RunOptions()
        self._running: concurrent.futures.Future[list[NDArray[np.float32]]] | None = None

    def start(self, n: int) -> None:
        self._options = self._engine.ort.RunOptions()
        self._running = self._engine.pool.submit(
            self._engine.session.run, None, {self._engine.input_name: self.input[:n]}, self._options)

    def wait(self, timeout: float) -> MapArray:
        if self._running is None:
            raise EngineError("no inference was started")
        try:
            return self._running.result(timeout)[0]
        except concurrent.futures.TimeoutError as error:
            self._options.terminate = True  # it still reads `input`: do not return before it has ended
            concurrent.futures.wait([self._running], timeout)
            raise EngineError("an inference did not end in time", got=f"more than {timeout:g} s") from error
        except Exception as error:  # the library's errors have no narrower base class
            raise EngineError("an inference failed on ONNX Runtime", got=str(error).splitlines()[0]) from error

    def release(self) -> None:
        self._running = None
        self._engine.free.put(self)


class OnnxRuntimeEngine:
    """A session with a number of slots. The graph's batch size is dynamic, so an inference costs only the images
    given.
    """

    def __init__(self, graph: Path, input_size: tuple[int, int, int], *, backend: str, provider: str, threads: int,
                 slots: int, batch: int, streams: int = 1) -> None:
        """input_size: (height, width, channels). threads: 0 for all cores that this process may use. streams:
        inferences that run at the same time and share the threads. Raises EngineError.
        """
        self.ort = ort = _import_onnxruntime()
        if provider not in ort.get_available_providers():
            raise EngineError(f"{backend} cannot run here",
                              got="ONNX Runtime with " + ", ".join(ort.get_available_providers()), expected=provider,
                              next="Install onnxruntime-gpu in place of onnxruntime.")
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, (threads or len(os.sched_getaffinity(0))) // streams)
        options.log_severity_level = 3
        settings: dict[str, object] = {}
        if provider == TENSORRT:  # it builds an engine when it first sees a shape: keep them
            settings = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache_folder("onnxruntime"))}
        elif provider == CUDA:
            settings = {"use_tf32": "0"}  # float32 is float32
        try:
            self.session = ort.InferenceSession(graph, options, providers=[(provider, settings)])
        except Exception as error:  # the library's errors have no narrower base class
            raise EngineError(f"ONNX Runtime cannot load {graph}", got=str(error).splitlines()[0],
                              next="Run `lineside export` again.") from error
        if self.session.get_providers()[0] != provider:
            raise EngineError(f"{backend} cannot run here", got=f"a session on {self.session.get_providers()[0]}",
                              expected=provider, next="`lineside doctor` says what is missing.")
        self.input_name = self.session.get_inputs()[0].name
        if self.session.get_inputs()[0].shape[1:] != [*input_size]:
            raise EngineError(f"{graph} takes other images", got=f"{self.session.get_inputs()[0].shape[1:]}",
                              expected=f"{[*input_size]}")
        self.pool = concurrent.futures.ThreadPoolExecutor(streams, "onnxruntime")
        self.free: queue.SimpleQueue[OnnxRuntimeSlot] = queue.SimpleQueue()
        for _ in range(slots):
            self.free.put(OnnxRuntimeSlot(self, (batch, *input_size)))

    def lease(self) -> OnnxRuntimeSlot:
        return self.free.get()

    def close(self) -> None:
        while not self.free.empty():
            self.free.get()
        self.pool.shutdown()

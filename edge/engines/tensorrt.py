"""TensorRT on a GPU, through PyCUDA. Each slot has its own stream, pinned memory and device memory, so that one slot
copies while another computes. A slot's work is captured as a CUDA graph if possible.
"""

from __future__ import annotations

import contextlib
import queue
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import EngineError, EngineLostError
from edge.base.files import file_sha256
from edge.base.finding import Finding
from edge.engines.cuda_graphs import CaptureError, CudaGraph, pop_context
from edge.engines.engine import Backend, Engine, Layout, Mode, Precision
from edge.engines.gpu import find_driver, find_packages, import_cuda, import_tensorrt, make_logger, this_device
from edge.engines.plans import find_plan, has_plan, plan_folder
from edge.images.maps import MapArray

GPU_BATCH = 4  # images in a slot in throughput mode; one alone does not fill a GPU
POLL = 5e-5  # s between checks whether an inference has ended
RESTART = "The runtime must be restarted; its supervisor does that."
CLOSING = 10.0  # s that closing waits for running inferences


class TensorRt(Backend):
    """TensorRT. It runs plans that `lineside engine` built on this machine."""

    name = "tensorrt"
    package = "tensorrt"  # PyCUDA as well, which `import_cuda` asks for
    install = "`lineside doctor` says how to install it."
    precisions = ("fp32", "fp16", "int8")
    automatic = True
    needs_plan = True
    groups = False
    tiles_ahead = 0

    def can_run(self, precision: Precision, graph_sha256: str) -> bool:
        return precision in self.precisions and self.installed() and has_plan(plan_folder(), graph_sha256)

    def plan_fits(self, graph_sha256: str) -> bool:
        try:
            find_plan(plan_folder(), graph_sha256, this_device(), 1)
        except EngineError:
            return False
        return True

    def layout(self, mode: Mode, threads: int) -> Layout:
        return Layout(1, 2, GPU_BATCH) if mode == "throughput" else super().layout(mode, threads)

    def device_name(self) -> str:
        return this_device().name

    def make_engine(self, graph: Path, input_size: tuple[int, int, int], *, precision: Precision, threads: int,
                    slots: int, batch: int, streams: int = 1, cached: bool = False) -> Engine:
        _, plan = find_plan(plan_folder(), file_sha256(graph), this_device(), batch)
        return TensorRtEngine(plan, input_size, slots=slots, batch=batch)

    def doctor(self, root: Path) -> Iterator[Finding]:
        yield from find_driver(root)
        yield from find_packages(root)


class EngineRefusedError(EngineError):
    """A TensorRT call returned an error."""


class TensorRtSlot:
    """Pinned host memory, device memory, a stream and an event. ``input``: uint8 ``[batch, H, W, C]``, pinned.

    There is one execution context, with its CUDA graph, for ``batch`` images, one for half as many, and so on; n images
    run in the smallest that holds them. So no shape changes and no graph is captured while the line runs.
    """

    def __init__(self, owner: TensorRtEngine, batch: int) -> None:
        owner.slots.append(self)  # first, so that `close` frees what was allocated if the rest fails
        self._owner, self._n, self.in_flight = owner, 0, False
        self._enqueue: dict[int, Callable[[], None]] = {}
        self._graphs: dict[int, CudaGraph] = {}
        self._stream: Any = None
        self._done: Any = None
        self._stream = owner.cuda.Stream()
        self._done = owner.cuda.Event(owner.cuda.event_flags.DISABLE_TIMING)
        self.input: NDArray[np.uint8] = owner.pinned((batch, *owner.input_size), np.uint8)
        self._output: MapArray = owner.pinned((batch, *owner.output_size), np.float32)
        device_input, device_output = owner.memory(self.input.nbytes), owner.memory(self._output.nbytes)
        n = batch
        while n:
            self._enqueue[n] = self._prepare(n, device_input, device_output)
            n //= 2
        self._size = [min(size for size in self._enqueue if size >= n) for n in range(1, batch + 1)]
        self._views = [self._output[:n] for n in range(1, batch + 1)]

    def _prepare(self, n: int, device_input: Any, device_output: Any) -> Callable[[], None]:
        """A function that puts copy-in, inference and copy-out of n images on the stream."""
        owner = self._owner
        context = owner.execution()
        if not context.set_input_shape(owner.input_name, (n, *owner.input_size)):
            raise owner.refused(f"TensorRT does not take {n} images at once")
        context.set_tensor_address(owner.input_name, int(device_input))
        context.set_tensor_address(owner.output_name, int(device_output))
        given, got = self.input[:n], self._output[:n]
        into, out_of = owner.cuda.memcpy_htod_async, owner.cuda.memcpy_dtoh_async

        def enqueue() -> None:
            into(device_input, given, self._stream)
            if not context.execute_async_v3(self._stream.handle):
                raise owner.refused("TensorRT could not start an inference")
            out_of(got, device_output, self._stream)

        return enqueue

    def warm_up(self) -> None:
        """Run each batch size once, then capture it, unless an earlier capture failed."""
        for n, enqueue in self._enqueue.items():
            enqueue()
            self._owner.finish(self._stream)
            if self._owner.without_graphs is None:
                try:
                    self._graphs[n] = CudaGraph(self._stream.handle, enqueue)
                except (CaptureError, EngineError, self._owner.cuda.Error) as error:
                    self._owner.without_graphs = str(error).rstrip(".")

    def start(self, n: int) -> None:
        owner = self._owner
        with owner.current():
            try:
                if self.in_flight and not self._done.query():
                    raise EngineError("the slot's previous inference has not ended")
                self._n, size, self.in_flight = n, self._size[n - 1], True
                if size in self._graphs:
                    self._graphs[size].launch()
                else:
                    self._enqueue[size]()
                self._done.record(self._stream)
            except (owner.cuda.Error, CaptureError, EngineRefusedError) as error:
                self.in_flight = False
                raise owner.failed("TensorRT could not start an inference", error) from error

    def wait(self, timeout: float) -> MapArray:
        owner, deadline = self._owner, time.monotonic() + timeout
        if not self.in_flight:
            raise EngineError("no inference was started")
        with owner.current():
            try:
                while not self._done.query():
                    if time.monotonic() > deadline:
                        raise EngineError("an inference did not end in time", got=f"more than {timeout:g} s")
                    time.sleep(POLL)
            except owner.cuda.Error as error:
                self.in_flight = False
                raise owner.failed("an inference failed on the GPU", error) from error
        self.in_flight = False
        return self._views[self._n - 1]

    def release(self) -> None:
        self._owner.free.put(self)

    def _idle(self) -> bool:
        try:
            return bool(self._stream.is_done())
        except self._owner.cuda.Error:  # if the second call succeeds, it was the error of other work
            return bool(self._stream.is_done())

    def close(self, deadline: float) -> None:
        """Wait for the stream's work until ``deadline`` (monotonic, s), then free everything but memory, which the
        engine frees. Raises EngineLostError if the work does not end.
        """
        while self._stream is not None and not self._idle():
            if time.monotonic() > deadline:
                raise EngineLostError("the GPU does not finish its work", next=RESTART)
            time.sleep(POLL)
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._enqueue.clear()
        self._stream = self._done = None
        self.input = self._output = np.empty(0)  # type: ignore[assignment]  # their memory is freed
        self._views = []


class TensorRtEngine:
    """A deserialised plan with a number of slots, on the first GPU. Any thread may use it, but only one at a time a
    slot.
    """

    def __init__(self, plan: bytes, input_size: tuple[int, int, int], *, slots: int, batch: int) -> None:
        """input_size: (height, width, channels). Raises EngineError, with everything freed."""
        self.input_size = input_size
        self.free: queue.SimpleQueue[TensorRtSlot] = queue.SimpleQueue()
        self.slots: list[TensorRtSlot] = []
        self.without_graphs: str | None = None  # why inferences are not launched as CUDA graphs; None if they are
        self._memory: list[Any] = []
        self._lost = self._closed = False
        self.cuda = import_cuda()
        trt = import_tensorrt()
        self._log = make_logger(trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        try:
            self._context = self.cuda.Device(0).retain_primary_context()
            with self.current():
                self._open(trt, plan, slots, batch)
        except BaseException as error:
            # they hold streams and events, which must be destroyed before the context
            traceback.clear_frames(error.__traceback__)
            self.close()
            if isinstance(error, (self.cuda.Error, CaptureError)):
                raise EngineError("the TensorRT engine cannot start", got=str(error),
                                  expected="enough free GPU memory, and a plan that fits this GPU") from error
            raise

    def _open(self, trt: Any, plan: bytes, slots: int, batch: int) -> None:
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self.refused("TensorRT refuses the plan")
        given: list[tuple[str, tuple[int, ...], Any]] = []
        got: list[tuple[str, tuple[int, ...], Any]] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            tensor = name, tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)
            (given if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else got).append(tensor)
        if len(given) != 1 or given[0][1][0] not in (-1, batch) or given[0][1][1:] != self.input_size \
                or given[0][2] != trt.DataType.UINT8 or len(got) != 1 \
                or got[0][2] != trt.DataType.FLOAT or len(got[0][1]) != 4 or got[0][1][1] not in (-1, 1):
            raise EngineError("the plan belongs to another network", got=f"{given} to {got}",
                              next="Run `lineside engine` again.",
                              expected=f"uint8 {(-1, *self.input_size)} to one float32 map (-1, 1, h, w)")
        self.input_name, (self.output_name, output_shape, _) = given[0][0], got[0]
        self.output_size = output_shape[1:]
        if min(self.output_size) < 1:  # dynamic in the graph, but determined by the input's size
            context = self.execution()
            context.set_input_shape(self.input_name, (1, *self.input_size))
            self.output_size = tuple(context.get_tensor_shape(self.output_name))[1:]
        for _ in range(slots):
            TensorRtSlot(self, batch).warm_up()
        for slot in self.slots:
            self.free.put(slot)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's context current in this thread, for the duration of a ``with`` block."""
        if self._lost:
            raise EngineLostError("the GPU was lost", next=RESTART)
        self._twice(self._context.push)
        try:
            yield
        finally:
            with contextlib.suppress(EngineLostError):
                self._twice(self._context.pop)

    def _twice(self, call: Callable[[], None]) -> None:
        """Push or pop the context; once more if the call returned an error of earlier work. Raises EngineLostError."""
        try:
            call()
        except self.cuda.Error:
            try:
                call()
            except self.cuda.Error as error:
                self._lost = True
                raise EngineLostError("the GPU's context is gone", got=str(error), next=RESTART) from error

    def execution(self) -> Any:
        """A new execution context. Raises EngineError, mostly for lack of memory."""
        context = self._engine.create_execution_context()
        if context is None:
            raise self.refused("TensorRT has no room for an execution context")
        return context

    def pinned(self, shape: tuple[int, ...], dtype: type) -> Any:
        """Pinned host memory, which the GPU copies while other work runs."""
        array = self.cuda.pagelocked_empty(shape, dtype)
        self._memory.append(array.base)
        array[:] = 0
        return array

    def memory(self, size: int) -> Any:
        """Device memory of ``size`` bytes."""
        allocation = self.cuda.mem_alloc(size)
        self._memory.append(allocation)
        return allocation

    def finish(self, stream: Any) -> None:
        """Wait for all work of a stream. Raises EngineError."""
        try:
            stream.synchronize()
        except self.cuda.Error as error:
            raise self.failed("an inference failed on the GPU", error) from error

    def refused(self, what: str) -> EngineError:
        """The error for a failed TensorRT call, with what TensorRT logged."""
        return EngineRefusedError(what, got=self._log.last or "no reason in its log",
                                  next="Run `lineside engine` again on this machine.")

    def failed(self, what: str, error: BaseException) -> EngineError:
        """The error for a failed CUDA call. EngineLostError if the context stays broken: then no call works in this
        process.
        """
        try:
            self._context.synchronize()  # afterwards nothing reads `input` any more
        except self.cuda.Error as again:
            self._lost = True
            return EngineLostError("the GPU was lost", got=str(again), next=RESTART)
        return error if isinstance(error, EngineError) else EngineError(what, got=str(error))

    def lease(self) -> TensorRtSlot:
        return self.free.get()

    def close(self) -> None:
        """Wait for running inferences, then free everything. On a lost GPU nothing can be freed: the process must
        end.
        """
        if self._closed or self._context is None or self._lost:
            return
        self._closed = True
        with contextlib.suppress(EngineLostError), self.current():
            try:
                deadline = time.monotonic() + CLOSING
                for slot in self.slots:
                    slot.close(deadline)
                while not self.free.empty():
                    self.free.get()
                self.slots.clear()
                self._engine = self._runtime = None
                while self._memory:
                    self._memory.pop().free()
            except (self.cuda.Error, EngineLostError):
                self._lost = True
        if not self._lost:
            self._detach()

    def _detach(self) -> None:
        """Release the context. PyCUDA does that only in the thread that pushed it last, while it is current, and then
        leaves it on the thread's stack.
        """
        with contextlib.suppress(EngineLostError):
            self._twice(self._context.push)
            self._context.detach()
            pop_context()

    def layer_times(self, runs: int) -> dict[str, float]:
        """ms of each layer for one image, the median of ``runs``, slowest layer first. Raises EngineError."""
        trt: Any = import_tensorrt()
        times: dict[str, list[float]] = {}

        class Profiler(trt.IProfiler):
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        with self.current():
            context, profiler, stream = self.execution(), Profiler(), self.cuda.Stream()
            context.set_input_shape(self.input_name, (1, *self.input_size))
            context.set_tensor_address(self.input_name, int(self.memory(int(np.prod(self.input_size)))))
            context.set_tensor_address(self.output_name, int(self.memory(4 * int(np.prod(self.output_size)))))
            context.profiler = profiler
            for _ in range(runs):
                if not context.execute_async_v3(stream.handle):
                    raise self.refused("TensorRT could not start an inference")
                self.finish(stream)
            del context, stream
        return dict(sorted(((name, round(statistics.median(found), 4)) for name, found in times.items()),
                           key=lambda item: -item[1]))

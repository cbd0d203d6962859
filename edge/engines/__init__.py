"""Engines: one file for each backend, all behind the same protocol of leased slots."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle, file_sha256
from edge.decision import Backend, Precision
from edge.errors import EngineError, InputError
from edge.rule import MapArray


class Slot(Protocol):
    """Room for one inference. ``input`` is the engine's own memory: frames are prepared straight into it."""

    input: NDArray[np.uint8]  # [batch, H, W, C]

    def start(self, n: int) -> None:
        """Begin the inference of the first ``n`` images of ``input``; returns at once."""

    def wait(self, timeout: float) -> MapArray:
        """The maps, float32 ``[n, 1, h, w]``, a view valid until ``release``. Raises EngineError, also after ``timeout`` s."""

    def release(self) -> None:
        """Give the slot back to the engine."""


class Engine(Protocol):
    """A network made ready on a device."""

    backend: Backend

    def lease(self) -> Slot:
        """A free slot; waits until there is one."""

    def close(self) -> None:
        """Free everything; no slot may be used afterwards."""


def pick_backend(bundle: Bundle, name: str = "auto", precision: str = "fp32") -> Backend:
    """The backend of that name; ``auto``: TensorRT where `lineside engine` built a plan of the precision (``auto``: of any that the bundle
    offers), else OpenVINO where it is installed, else ONNX Runtime. Raises InputError or EngineError.
    """
    if name == "auto":
        if any(can_run("tensorrt", offered, bundle) for offered in bundle.offered() if precision in (offered, "auto")):
            return "tensorrt"
        return processor_backend()
    for known in get_args(Backend):
        if name == known:
            package = name.partition("-")[0]
            if find_spec(package) is None:
                raise EngineError(f"{name} cannot run here", got=f"no package {package}", expected="an installed one",
                                  next="Run `pip install 'lineside[onnxruntime]'`." if package == "onnxruntime" else None)
            return known
    raise InputError("there is no such backend", got=repr(name), expected=", ".join([*get_args(Backend), "auto"]))


def processor_backend() -> Backend:
    """OpenVINO where it is installed, else ONNX Runtime. Raises EngineError where neither is."""
    for name in ("openvino", "onnxruntime"):
        if find_spec(name) is not None:
            return name
    raise EngineError("no engine is installed", got="neither openvino nor onnxruntime", next="Run `pip install openvino`.")


def can_run(backend: str, precision: Precision, bundle: Bundle) -> bool:
    """Whether a backend could run a precision: OpenVINO alone runs the float32 graph in bfloat16; TensorRT needs a plan."""
    if backend == "tensorrt" and precision != "bf16":
        from edge.engines.plans import has_plan, plan_folder

        return find_spec("tensorrt") is not None and has_plan(plan_folder(), bundle.graph_sha256(precision))
    return precision != "bf16" or backend == "openvino"


def plan_fits(backend: str, precision: Precision, bundle: Bundle) -> bool:
    """Whether a backend needs no plan, or has one for this device that is not stale."""
    if backend != "tensorrt":
        return True
    from edge.engines.plans import find_plan, plan_folder
    from edge.engines.tensorrt import this_device

    try:
        find_plan(plan_folder(), bundle.graph_sha256(precision), this_device(), 1)
    except EngineError:
        return False
    return True


def make_engine(backend: Backend, graph: Path, input_size: tuple[int, int, int], *, precision: str, threads: int, slots: int,
                batch: int, streams: int = 1, cached: bool = False) -> Engine:
    """An engine of a backend that runs an ONNX graph. input_size: (height, width, channels). Raises EngineError.

    streams: inferences that run beside one another on a processor, and share its threads; on a GPU each slot has its own. cached: OpenVINO
    takes the compiled model of before where there is one, for a fast start.
    """
    if backend == "openvino":
        from edge.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(graph, input_size, precision=precision, threads=threads, slots=slots, batch=batch, streams=streams,
                              cached=cached)
    if backend == "tensorrt":
        from edge.engines.plans import find_plan, plan_folder
        from edge.engines.tensorrt import TensorRtEngine, this_device

        _, plan = find_plan(plan_folder(), file_sha256(graph), this_device(), batch)
        return TensorRtEngine(plan, input_size, slots=slots, batch=batch)
    from edge.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, input_size, backend=backend, precision=precision, threads=threads, slots=slots, batch=batch,
                             streams=streams)


def pick_engine(bundle: Bundle, *, backend: Backend, precision: str = "fp32", threads: int = 0, slots: int = 2, batch: int = 1,
                streams: int = 1, cached: bool = False) -> Engine:
    """A bundle's graph of ``precision`` on a backend. threads 0: as many as cores. Raises EngineError or BundleError."""
    size = (bundle.card.input.height, bundle.card.input.width, bundle.card.input.channels)
    return make_engine(backend, bundle.graph(precision), size, precision=precision, threads=threads, slots=slots, batch=batch,
                       streams=streams, cached=cached)


def device_name(backend: Backend) -> str:
    """The device that a backend runs on, and the backend's version: the same name stands for the same arithmetic."""
    if backend == "openvino":
        from edge.engines.openvino import device_name as openvino_device

        return openvino_device()
    if backend == "tensorrt":
        from edge.engines.tensorrt import this_device

        return this_device().name
    from edge.engines.onnxruntime import device_name as onnxruntime_device

    return onnxruntime_device(backend)

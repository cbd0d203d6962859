"""The backends, each imported when it is needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edge.base.errors import EngineError
from edge.base.files import file_sha256
from edge.engines.engine import Backend, Engine, Precision


def processor_backend() -> Backend:
    """OpenVINO where it is installed, else ONNX Runtime. Raises EngineError where neither is."""
    for name in ("openvino", "onnxruntime"):
        if find_spec(name) is not None:
            return name
    raise EngineError("no engine is installed", got="neither openvino nor onnxruntime", next="Run `pip install openvino`.")


def can_run(backend: str, precision: Precision, graph_sha256: str) -> bool:
    """Whether a backend could run a precision: OpenVINO alone runs the float32 graph in bfloat16; TensorRT needs a plan."""
    if backend == "tensorrt" and precision != "bf16":
        from edge.engines.plans import has_plan, plan_folder

        return find_spec("tensorrt") is not None and has_plan(plan_folder(), graph_sha256)
    return precision != "bf16" or backend == "openvino"


def plan_fits(backend: str, precision: Precision, graph_sha256: str) -> bool:
    """Whether a backend needs no plan, or has one for this device that is not stale."""
    if backend != "tensorrt":
        return True
    from edge.engines.plans import find_plan, plan_folder
    from edge.engines.tensorrt import this_device

    try:
        find_plan(plan_folder(), graph_sha256, this_device(), 1)
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

"""Which backend a bundle runs on."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

from edge.base.errors import EngineError, InputError
from edge.bundle.bundle import Bundle
from edge.engines.backends import can_run, make_engine, processor_backend
from edge.engines.engine import Backend, Engine


def pick_backend(bundle: Bundle, name: str = "auto", precision: str = "fp32") -> Backend:
    """The backend of that name; ``auto``: TensorRT where `lineside engine` built a plan of the precision (``auto``: of any that the bundle
    offers), else OpenVINO where it is installed, else ONNX Runtime. Raises InputError or EngineError.
    """
    if name == "auto":
        wanted = [offered for offered in bundle.offered() if precision in (offered, "auto")]
        if any(can_run("tensorrt", offered, bundle.graph_sha256(offered)) for offered in wanted):
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


def pick_engine(bundle: Bundle, *, backend: Backend, precision: str = "fp32", threads: int = 0, slots: int = 2, batch: int = 1,
                streams: int = 1, cached: bool = False) -> Engine:
    """A bundle's graph of ``precision`` on a backend. threads 0: as many as cores. Raises EngineError or BundleError."""
    size = (bundle.card.input.height, bundle.card.input.width, bundle.card.input.channels)
    return make_engine(backend, bundle.graph(precision), size, precision=precision, threads=threads, slots=slots, batch=batch,
                       streams=streams, cached=cached)

"""The backends there are, one line each. A backend's file is imported when it is first asked for."""

from __future__ import annotations

from pkgutil import resolve_name

from edge.base.errors import EngineError, InputError
from edge.engines.engine import Backend

BACKENDS = {  # the module and the class that declares it; `auto` prefers the earlier ones
    "tensorrt": "edge.engines.tensorrt:TensorRt",
    "openvino": "edge.engines.openvino:OpenVino",
    "onnxruntime": "edge.engines.onnxruntime:OnnxRuntime",
    "onnxruntime-cuda": "edge.engines.onnxruntime:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": "edge.engines.onnxruntime:OnnxRuntimeTensorRt",
}
BACKEND_HELP = f"{', '.join(BACKENDS)}; auto: the best that can run the bundle here."


def get_backend(name: str) -> Backend:
    """The backend of that name. Raises InputError for one that does not exist."""
    if name not in BACKENDS:
        raise InputError("there is no such backend", got=repr(name), expected=", ".join([*BACKENDS, "auto"]))
    made: Backend = resolve_name(BACKENDS[name])()
    return made


def all_backends() -> list[Backend]:
    """All of them, installed or not."""
    return [get_backend(name) for name in BACKENDS]


def processor_backend() -> str:
    """The first installed backend that `auto` may take for any graph. Raises EngineError if none is installed."""
    able = [backend for backend in all_backends() if backend.automatic and not backend.needs_plan]
    for backend in able:
        if backend.installed():
            return backend.name
    raise EngineError("no engine is installed", got="neither " + " nor ".join(backend.name for backend in able),
                      next=able[0].install)


def check_backend_name(name: str) -> str:
    """The name, for a settings model. Raises ValueError for a backend that does not exist."""
    if name not in BACKENDS:
        raise ValueError("one of " + ", ".join(BACKENDS))
    return name

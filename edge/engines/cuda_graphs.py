"""CUDA graphs, by calls to the driver library, since PyCUDA does not offer them. A captured graph is launched by one
call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate during the capture


class CaptureError(Exception):
    """A driver call for a graph failed; the text names the call and the error."""


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _checked(name: str, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise CaptureError(f"{name}: {(text.value or b'error %d' % code).decode()}")


def pop_context() -> None:
    """Remove the current context from this thread's stack."""
    _driver().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


class CudaGraph:
    """Work captured from a stream. The CUDA context must be current in every call."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """stream: a handle; enqueue: a function that puts the work on it without waiting.

        Raises CaptureError, and whatever ``enqueue`` raises.
        """
        handle, graph, runnable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        _checked("cuStreamBeginCapture", _driver().cuStreamBeginCapture_v2(handle, THREAD_LOCAL))
        try:
            enqueue()
        except BaseException:
            _driver().cuStreamEndCapture(handle, ctypes.byref(graph))
            if graph:
                _driver().cuGraphDestroy(graph)
            raise
        _checked("cuStreamEndCapture", _driver().cuStreamEndCapture(handle, ctypes.byref(graph)))
        try:
            _checked("cuGraphInstantiate", _driver().cuGraphInstantiateWithFlags(ctypes.byref(runnable), graph,
                                                                                 ctypes.c_ulonglong(0)))
        finally:
            _driver().cuGraphDestroy(graph)
        self._graph, self._stream = runnable, handle

    def launch(self) -> None:
        """Put the captured work on its stream. Raises CaptureError."""
        _checked("cuGraphLaunch", _driver().cuGraphLaunch(self._graph, self._stream))

    def close(self) -> None:
        """Free the graph; its work must have ended."""
        _driver().cuGraphExecDestroy(self._graph)

"""The maps of a graph that is not in a bundle yet, on OpenVINO and on ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.base.errors import EngineError
from edge.engines.openvino import OpenVinoEngine
from edge.images.maps import MapArray

TIMEOUT = 60.0  # s for one inference


class OpenVinoMaps:
    """A graph on OpenVINO, the line's own engine."""

    def __init__(self, graph: Path, size: tuple[int, int, int], precision: str, threads: int = 0) -> None:
        """size: (height, width, channels) of the input. Raises EngineError."""
        self._engine = OpenVinoEngine(graph, size, precision=precision, threads=threads, slots=1, batch=1)
        self._slot = self._engine.lease()

    def __call__(self, image: NDArray[np.uint8]) -> MapArray:
        """The map ``[h, w]`` of an image uint8 ``[H, W, C]``."""
        np.copyto(self._slot.input[0], image)
        self._slot.start(1)
        return self._slot.wait(TIMEOUT)[0, 0].copy()

    def __enter__(self) -> OpenVinoMaps:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._slot.release()
        self._engine.close()


class OnnxRuntimeMaps:
    """A graph on ONNX Runtime, on the processor."""

    def __init__(self, graph: Path, *, threads: int = 0) -> None:
        """Raises EngineError."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no narrower base class
            raise EngineError("ONNX Runtime cannot load the graph", got=str(error).splitlines()[0]) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, image: NDArray[np.uint8]) -> MapArray:
        """The map ``[h, w]`` of an image uint8 ``[H, W, C]``."""
        return np.asarray(self._session.run(None, {self._input: image[None]})[0][0, 0], np.float32)

    def __enter__(self) -> OnnxRuntimeMaps:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        del self._session

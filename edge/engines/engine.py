"""What every engine does: it runs an ONNX graph in leased slots."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.images.maps import MapArray

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Backend = Literal["tensorrt", "openvino", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"]


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

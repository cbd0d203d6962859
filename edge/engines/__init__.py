"""Engines: one file for each backend, all behind the same protocol of leased slots."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.rule import MapArray

BACKEND: Literal["openvino"] = "openvino"  # what `pick_engine` picks

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

    backend: str

    def lease(self) -> Slot:
        """A free slot; waits until there is one."""

    def close(self) -> None:
        """Free everything; no slot may be used afterwards."""


def pick_engine(bundle: Bundle, *, precision: str = "fp32", threads: int = 0, slots: int = 2, batch: int = 1) -> Engine:
    """The fastest backend that is present here, with the bundle's graph of ``precision``. threads 0: as many as cores.

    OpenVINO is the one backend of this version. Raises EngineError or BundleError.
    """
    from edge.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(bundle.graph(precision), (bundle.card.input.height, bundle.card.input.width, bundle.card.input.channels),
                          precision=precision, threads=threads, slots=slots, batch=batch)


def device_name() -> str:
    """The device that `pick_engine` runs on, and the version of its backend."""
    from edge.engines.openvino import device_name as openvino_device

    return openvino_device()

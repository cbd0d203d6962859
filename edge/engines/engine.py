"""What every engine does, and what every backend says about itself.

A *backend* is one way to run a bundle's graph: OpenVINO, ONNX Runtime, TensorRT. It declares itself in a file of its
own as a subclass of `Backend`, and is listed on one line in `edge.engines.backends`. An *engine* is a graph that a
backend has made ready to run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from edge.base.finding import Finding

if TYPE_CHECKING:  # the command line reads the list of backends, and starts without numpy
    import numpy as np
    from numpy.typing import NDArray

    from edge.images.maps import MapArray

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Mode = Literal["single", "latency", "throughput"]
GROUP = 8  # frames in throughput mode that a processor's results are collected for at once, at most
TILES_AHEAD = 24  # tiles queued in a processor's engine while earlier maps are blended and searched for blobs


class Slot(Protocol):
    """Room for one inference. ``input`` is the engine's own memory: frames are prepared straight into it."""

    input: NDArray[np.uint8]  # [batch, H, W, C]

    def start(self, n: int) -> None:
        """Start the inference of the first ``n`` images of ``input``; returns at once."""

    def wait(self, timeout: float) -> MapArray:
        """The maps, float32 ``[n, 1, h, w]``, a view valid until ``release``. Raises EngineError, also after
        ``timeout`` s.
        """

    def release(self) -> None:
        """Give the slot back to the engine."""


class Engine(Protocol):
    """A network made ready on a device."""

    def lease(self) -> Slot:
        """A free slot; waits until there is one."""

    def close(self) -> None:
        """Free everything; no slot may be used afterwards."""


@dataclass(frozen=True)
class Layout:
    """How much work an engine is given at once."""

    streams: int  # inferences that run at the same time and share the processor's threads; a GPU has one for each slot
    slots: int
    batch: int  # images in each slot


class Backend(ABC):
    """What the rest of the program needs to know about a backend. The defaults describe one that runs on the processor.

    A subclass imports its library inside methods, so that it can be asked where that is not installed.
    """

    name: ClassVar[str]  # in decision.toml, and for --backend
    package: ClassVar[str]  # that has to be importable
    install: ClassVar[str]  # what to do if it is not; a sentence
    precisions: ClassVar[tuple[Precision, ...]]
    automatic: ClassVar[bool] = False  # whether `--backend auto` may take it
    needs_plan: ClassVar[bool] = False  # whether it runs only graphs that were compiled on this machine beforehand
    groups: ClassVar[bool] = True  # whether it is faster to collect the results of several frames at once
    tiles_ahead: ClassVar[int] = TILES_AHEAD  # slots added when frames are cut into tiles

    def installed(self) -> bool:
        """Whether its package is there. Does not load it."""
        return find_spec(self.package) is not None

    def can_run(self, precision: Precision, graph_sha256: str) -> bool:
        """Whether it could run a graph in a precision."""
        return precision in self.precisions

    def plan_fits(self, graph_sha256: str) -> bool:
        """Whether it needs no plan of a graph, or has one that was built for this device and versions."""
        return True

    def layout(self, mode: Mode, threads: int) -> Layout:
        """How many slots it gets. single: one frame at a time; latency: also the next one, which waits for all
        ``threads``; throughput: one frame on each thread, and some more whose results wait to be collected.
        """
        if mode == "throughput":
            return Layout(threads, threads + GROUP, 1)
        return Layout(1, 1 if mode == "single" else 2, 1)

    @abstractmethod
    def device_name(self) -> str:
        """The device that it runs on, and its version: the same name stands for the same arithmetic. Raises
        EngineError.
        """

    @abstractmethod
    def make_engine(self, graph: Path, input_size: tuple[int, int, int], *, precision: Precision, threads: int,
                    slots: int, batch: int, streams: int = 1, cached: bool = False) -> Engine:
        """An engine that runs an ONNX graph. Raises EngineError.

        input_size: (height, width, channels). threads: of the processor; 0: all that this process may use. streams: see
        `Layout`. cached: a model that an earlier start compiled may be used.
        """

    def doctor(self, root: Path) -> Iterator[Finding]:
        """What `lineside doctor` reports about it. root: the file system's root folder, or a test's stand-in for it."""
        return iter(())

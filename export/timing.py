"""Times graphs on OpenVINO, and each product in them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edge.base.errors import EngineError
from edge.engines.openvino_graphs import BFLOAT16, PRECISION_HINTS, compile_model

ROUNDS = 10  # least number of inferences, of which the fastest counts, because other programs use the processor too
SECONDS = 0.4  # least time that they take together


def _compiled(graph: Path, size: tuple[int, int, int], settings: dict[str, Any]) -> ov.CompiledModel:
    """A graph of any precision on one core. Raises EngineError."""
    settings = {**settings, "INFERENCE_PRECISION_HINT": PRECISION_HINTS["int8"], "INFERENCE_NUM_THREADS": 1}
    try:
        return compile_model(graph, (1, *size), settings)
    except RuntimeError as error:
        raise EngineError("OpenVINO cannot load the graph", got=str(error).splitlines()[0]) from error


class Stopwatch:
    """Compares other graphs with a first one, for one image on one core; both run in turn."""

    def __init__(self, graph: Path, size: tuple[int, int, int], image: NDArray[np.uint8]) -> None:
        """size: (height, width, channels); image: uint8 ``[H, W, C]``. Raises EngineError."""
        self._size, self._feed = size, {0: image[None]}
        self._first = _compiled(graph, size, {}).create_infer_request()

    def longer(self, graph: Path) -> float:
        """How much longer ``graph`` takes than the first graph, as a share of the first; negative if it is faster."""
        other = _compiled(graph, self._size, {}).create_infer_request()
        begin, done, first, second = time.perf_counter(), 0, math.inf, math.inf
        while done < ROUNDS or time.perf_counter() - begin < SECONDS:
            first, second = min(first, self._once(self._first)), min(second, self._once(other))
            done += 1
        return second / first - 1

    def _once(self, request: ov.InferRequest) -> float:
        start = time.perf_counter()
        request.infer(self._feed)
        return time.perf_counter() - start


def shares(graph: Path, size: tuple[int, int, int], nodes: Collection[str],
           image: NDArray[np.uint8]) -> dict[str, float]:
    """The share of each of ``nodes`` in the time that they take together on one core, with everything fused into it.

    Convolutions that OpenVINO renamed share their time equally. Raises EngineError.
    """
    compiled = _compiled(graph, size, {"PERF_COUNT": True})
    owners = {op.friendly_name: _products(op, nodes) for op in compiled.get_runtime_model().get_ordered_ops()}
    unnamed = set(nodes).difference(*owners.values())
    times = dict.fromkeys(nodes, math.inf)
    request = compiled.create_infer_request()
    for _ in range(ROUNDS):
        request.infer({0: image[None]})
        spent = dict.fromkeys(nodes, 0.0)
        for layer in request.profiling_info:
            owned = owners.get(layer.node_name) or (unnamed if "Convolution" in layer.node_type else set())
            for name in owned:
                spent[name] += layer.real_time.total_seconds() / len(owned)
        times = {name: min(times[name], value) for name, value in spent.items()}
    total = max(sum(times.values()), 1e-9)
    return {name: value / total for name, value in times.items()}


def _products(op: ov.Node, nodes: Collection[str]) -> set[str]:
    """Those of ``nodes`` that a layer of a compiled model computes."""
    value: Any = op.get_rt_info()["originalLayersNames"]
    names = value.astype(str) if hasattr(value, "astype") else str(value)
    return {name.split("/")[0].removesuffix(BFLOAT16) for name in names.split(",")} & set(nodes)

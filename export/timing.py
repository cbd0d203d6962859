"""How long each product of a graph takes on the line's engine."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edge.engines.openvino import BFLOAT16, PRECISION_HINTS, compile_model
from edge.errors import EngineError

ROUNDS = 20  # inferences, of which the fastest counts
LEAST = 1e-4  # of the time of all products: what any of them takes at least


class Cost(NamedTuple):
    """Shares of the time that all products take in float32."""

    low: float  # in the low precision
    half: float  # in bfloat16
    full: float  # in float32


def node_times(graph: Path, size: tuple[int, int, int], nodes: Collection[str], image: NDArray[np.uint8]) -> dict[str, float]:
    """Milliseconds on one core of each of ``nodes``, with all that was fused into it.

    Convolutions that the engine gave other names share the time of all such ones. size: (height, width, channels); image: uint8
    ``[H, W, C]``. Raises EngineError.
    """
    settings = {"INFERENCE_PRECISION_HINT": PRECISION_HINTS["int8"], "PERF_COUNT": True, "INFERENCE_NUM_THREADS": 1}
    try:
        compiled = compile_model(graph, (1, *size), settings)
    except RuntimeError as error:
        raise EngineError("OpenVINO cannot load the graph", got=str(error).splitlines()[0]) from error
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
                spent[name] += 1000 * layer.real_time.total_seconds() / len(owned)
        times = {name: min(times[name], value) for name, value in spent.items()}
    return times


def _products(op: ov.Node, nodes: Collection[str]) -> set[str]:
    """Those of ``nodes`` that a layer of a compiled model works out."""
    value: Any = op.get_rt_info()["originalLayersNames"]
    names = value.astype(str) if hasattr(value, "astype") else str(value)
    return {name.split("/")[0].removesuffix(BFLOAT16) for name in names.split(",")} & set(nodes)


def costs_of(full: Mapping[str, float], low: Mapping[str, float] | None = None, half: Mapping[str, float] | None = None) -> dict[str, Cost]:
    """What each node costs, from its times in each precision. Where these are not known: a quarter, and half, of those in float32."""
    total = max(sum(full.values()), 1e-9)

    def share(value: float) -> float:
        return max(value / total, LEAST)

    return {name: Cost(share(low[name] if low else ms / 4), share(half[name] if half else ms / 2), share(ms)) for name, ms in full.items()}

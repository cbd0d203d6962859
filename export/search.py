"""The precision search: ranks nodes by how much they harm the map in the low precision, relative to what it costs to
raise theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from edge.images.maps import MapArray

Maps = Callable[[Path], list[MapArray]]  # runs a graph on the search's images
Higher = Literal["bf16", "fp32"]
Kept = Mapping[str, Higher]  # the nodes that are not in the low precision, and their precision
Write = Callable[[Path, Kept], None]  # writes a graph with all other nodes in the low precision
LEAST = 1e-4  # least cost that a node is assumed to have
WORTH_MEASURING = 1e-3  # a node's cost is measured if it causes at least this share of all squared errors
WORST = 1e6  # the error of a map with NaN or infinite values


@dataclass(frozen=True)
class NodeLoss:
    """A step of the search: a node that gets a higher precision."""

    name: str
    error: float | None  # the map's error with only this node in the low precision; None: not measured for lack of time
    share: float  # of the time of all products in float32
    precision: Higher = "fp32"  # that it gets
    cost: float = 0.0  # extra time, as a share of an inference with all nodes in the low precision


class Cost(NamedTuple):
    """The extra time of a node in bfloat16 and in float32, as shares of an inference with all nodes in the low
    precision.
    """

    half: float
    full: float


def last_steps(steps: Sequence[NodeLoss]) -> list[NodeLoss]:
    """The last step of each node."""
    return list({step.name: step for step in steps}.values())


def kept_by(kept: Sequence[NodeLoss]) -> dict[str, Higher]:
    """The precision of each of these nodes, by name."""
    return {step.name: step.precision for step in kept}


def map_error(expected: Sequence[MapArray], got: Sequence[MapArray]) -> float:
    """The error of maps relative to the signal of the expected ones: the ratio of both root mean squares over all
    maps.
    """
    noise, signal = [], []
    for reference, values in zip(expected, got, strict=True):
        if not np.isfinite(values).all():
            return WORST
        signal.append(float(np.mean((reference - np.median(reference)) ** 2)))
        noise.append(float(np.mean((values - reference) ** 2)))
    return float(np.sqrt(np.mean(noise) / max(float(np.mean(signal)), 1e-24)))


def enlarging(model: ModelProto) -> set[str]:
    """The names of matrix products of four-dimensional tensors with a constant: these upsample a map
    (`detectors.enlarge`).

    They cost little, and every rounding in them reaches the map.
    """
    constants = {value.name for value in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    planes = {value.name for value in [*inferred.value_info, *inferred.output] if len(value.type.tensor_type.shape.dim)
              == 4}
    return {node.name for node in model.graph.node
            if node.op_type == "MatMul" and node.output[0] in planes and not constants.isdisjoint(node.input)}


def rank_nodes(shares: Mapping[str, float], cost_of: Callable[[str], Cost] | None, write: Write, maps: Maps,
               expected: Sequence[MapArray], folder: Path, deadline: float, progress: Callable[[int, int], None],
               halves: bool = False) -> list[NodeLoss]:
    """All steps to float32, those that reduce the map's error most for their cost first.

    shares: of each node, see `NodeLoss`; cost_of: measures a node's cost, called only for harmful nodes; None: use
    typical costs. halves: use bfloat16 as a step in between where that helps. After ``deadline`` (monotonic, s) nothing
    more is measured; the remaining nodes come last, cheapest first.
    """
    graph = folder / "one.onnx"
    errors: dict[str, tuple[float, float]] = {}

    def error(kept: Kept) -> float:
        write(graph, kept)
        return map_error(expected, maps(graph))

    for done, name in enumerate(shares, 1):
        if time.monotonic() > deadline:
            break
        alone: dict[str, Higher] = {other: "fp32" for other in shares if other != name}
        low = error(alone)
        errors[name] = low, error({**alone, name: "bf16"}) if halves else low
        progress(done, 2 * len(shares))
    ordered: list[tuple[float, NodeLoss]] = []
    all_of_it = sum(low**2 for low, _ in errors.values())
    for done, (name, (low, half)) in enumerate(errors.items(), 1):
        measured = low**2 > WORTH_MEASURING * all_of_it and time.monotonic() < deadline
        cost = cost_of(name) if cost_of is not None and measured else usual_cost(shares[name])
        ordered += [(worth, NodeLoss(name, low, shares[name], precision, cost.half if precision == "bf16"
                                     else cost.full)) for precision, worth in steps_of(low, half, cost)]
        progress(len(shares) + done, 2 * len(shares))
    late = [NodeLoss(name, None, share, cost=usual_cost(share).full) for name, share in shares.items()
            if name not in errors]
    return [step for _, step in sorted(ordered, key=lambda step: -step[0])] + sorted(late, key=lambda step: step.cost)


def usual_cost(share: float) -> Cost:
    """The assumed cost of a node: bfloat16 takes twice as long as eight bits, float32 four times as long."""
    return Cost(share, 3 * share)


def steps_of(low: float, half: float, cost: Cost) -> list[tuple[Higher, float]]:
    """A node's steps from the low precision to float32, and how much each reduces the squared error per cost.

    low, half: the error with only this node in the low precision, or in bfloat16. bfloat16 is skipped if it reduces
    less per cost than the following step to float32.
    """
    by_half = (low**2 - half**2) / max(cost.half, LEAST)
    by_float = half**2 / max(cost.full - cost.half, LEAST)
    return [("bf16", by_half), ("fp32", by_float)] if by_half > by_float else [("fp32", low**2 / max(cost.full, LEAST))]


def as_arrays(images: NDArray[np.uint8], run: Callable[[NDArray[np.uint8]], MapArray]) -> list[MapArray]:
    """The map of each image."""
    return [run(image) for image in images]

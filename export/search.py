"""The precision search: from all nodes in the low precision, a higher one is given to those that spoil the map most for what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from edge.errors import EngineError
from edge.rule import MapArray
from export.timing import LEAST, Cost

Maps = Callable[[Path], list[MapArray]]  # of a graph, for the images of the search
Higher = Literal["bf16", "fp32"]
Kept = Mapping[str, Higher]  # nodes that are not in the low precision, and what they are in
Write = Callable[[Path, Kept], None]  # a graph with all nodes in the low precision but those
WORST = 1e6  # the error of a map that is not finite


@dataclass(frozen=True)
class NodeLoss:
    """A node that is given a higher precision."""

    name: str
    error: float | None  # what it does to the map in the low precision, alone; None: there was no time to measure it
    share: float  # of the time that all products take in float32
    precision: Higher = "fp32"  # that it is given
    cost: float = 0.0  # share of that time by which it takes longer so


def last_steps(steps: Sequence[NodeLoss]) -> list[NodeLoss]:
    """The nodes of these steps, each with its last one."""
    return list({step.name: step for step in steps}.values())


def kept_by(kept: Sequence[NodeLoss]) -> dict[str, Higher]:
    """What these nodes are in, by name."""
    return {step.name: step.precision for step in kept}


def map_error(expected: Sequence[MapArray], got: Sequence[MapArray]) -> float:
    """The noise of maps over the signal in the expected ones: root mean square of both, each over all maps."""
    noise, signal = [], []
    for reference, values in zip(expected, got, strict=True):
        if not np.isfinite(values).all():
            return WORST
        signal.append(float(np.mean((reference - np.median(reference)) ** 2)))
        noise.append(float(np.mean((values - reference) ** 2)))
    return float(np.sqrt(np.mean(noise) / max(float(np.mean(signal)), 1e-24)))


def enlarging(model: ModelProto) -> set[str]:
    """The names of matrix products of planes, four dimensions, with a constant: these enlarge a map (`detectors.enlarge`).

    They cost little and pass every rounding on to the map.
    """
    constants = {value.name for value in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    planes = {value.name for value in [*inferred.value_info, *inferred.output] if len(value.type.tensor_type.shape.dim) == 4}
    return {node.name for node in model.graph.node
            if node.op_type == "MatMul" and node.output[0] in planes and not constants.isdisjoint(node.input)}


def rank_nodes(nodes: Sequence[str], costs: Mapping[str, Cost], write: Write, maps: Maps, expected: Sequence[MapArray], folder: Path,
               deadline: float, progress: Callable[[int, int], None], halves: bool = False) -> list[NodeLoss]:
    """The steps to float32, those first that take most off the map's error for their cost. halves: by way of bfloat16, where that helps.

    Behind ``deadline`` (monotonic s) no more is measured: the rest comes last, the cheap ones first.
    """
    ordered: list[tuple[float, NodeLoss]] = []
    late = []
    graph = folder / "one.onnx"

    def error(kept: Kept) -> float:
        write(graph, kept)
        return map_error(expected, maps(graph))

    for done, name in enumerate(nodes, 1):
        cost = costs[name]
        if time.monotonic() > deadline:
            late.append(NodeLoss(name, None, cost.full, cost=cost.full - cost.low))
            continue
        alone: dict[str, Higher] = {other: "fp32" for other in nodes if other != name}
        low = error(alone)
        half = error({**alone, name: "bf16"}) if halves else low
        ordered += [(worth, NodeLoss(name, low, cost.full, precision, (cost.half if precision == "bf16" else cost.full) - cost.low))
                    for precision, worth in steps_of(low, half, cost)]
        progress(done, len(nodes))
    return [step for _, step in sorted(ordered, key=lambda step: -step[0])] + sorted(late, key=lambda step: step.cost)


def steps_of(low: float, half: float, cost: Cost) -> list[tuple[Higher, float]]:
    """The steps of a node from the low precision to float32, and what each takes off the squared error for what it costs.

    low, half: its error in the low precision and in bfloat16, alone. bfloat16 is left out where it takes off less for its cost than
    float32 does behind it.
    """
    by_half = (low**2 - half**2) / max(cost.half - cost.low, LEAST)
    by_float = half**2 / max(cost.full - cost.half, LEAST)
    return [("bf16", by_half), ("fp32", by_float)] if by_half > by_float else [("fp32", low**2 / max(cost.full - cost.low, LEAST))]


def fewest_kept(ranked: Sequence[NodeLoss], limit: float, write: Write, maps: Maps, expected: Sequence[MapArray], folder: Path,
                known: dict[int, float]) -> int:
    """How many of the first steps must be taken for a map error of at most ``limit``: found by bisection.

    known: errors by that number, kept over calls.
    """
    graph = folder / "several.onnx"
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if middle not in known:
            write(graph, kept_by(last_steps(ranked[:middle])))
            try:
                known[middle] = map_error(expected, maps(graph))
            except EngineError:
                known[middle] = WORST
        if known[middle] <= limit:
            high = middle
        else:
            low = middle + 1
    return low


def as_arrays(images: NDArray[np.uint8], run: Callable[[NDArray[np.uint8]], MapArray]) -> list[MapArray]:
    """The map of each image."""
    return [run(image) for image in images]

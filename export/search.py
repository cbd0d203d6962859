"""The precision search: from all nodes in the low precision, a higher one is given to those that spoil the map most for what they cost."""

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

Maps = Callable[[Path], list[MapArray]]  # of a graph, for the images of the search
Higher = Literal["bf16", "fp32"]
Kept = Mapping[str, Higher]  # nodes that are not in the low precision, and what they are in
Write = Callable[[Path, Kept], None]  # a graph with all nodes in the low precision but those
LEAST = 1e-4  # what a node is taken to cost at least
WORTH_MEASURING = 1e-3  # of all nodes' squared errors: what a node that adds less costs is not measured
WORST = 1e6  # the error of a map that is not finite


@dataclass(frozen=True)
class NodeLoss:
    """A node that is given a higher precision."""

    name: str
    error: float | None  # what it does to the map in the low precision, alone; None: there was no time to measure it
    share: float  # of the time that all products take in float32
    precision: Higher = "fp32"  # that it is given
    cost: float = 0.0  # share of an inference with all nodes in the low precision by which one takes longer so


class Cost(NamedTuple):
    """By what an inference takes longer with a node in a higher precision: shares of one with all nodes in the low one."""

    half: float
    full: float


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


def rank_nodes(shares: Mapping[str, float], cost_of: Callable[[str], Cost] | None, write: Write, maps: Maps, expected: Sequence[MapArray],
               folder: Path, deadline: float, progress: Callable[[int, int], None], halves: bool = False) -> list[NodeLoss]:
    """The steps to float32, those first that take most off the map's error for their cost. halves: by way of bfloat16, where that helps.

    shares: of all nodes; cost_of: measures what a node costs, and is asked for those that spoil something; None: what it usually costs.
    Behind ``deadline`` (monotonic s) nothing is measured any more: the rest comes last, the cheap ones first.
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
        ordered += [(worth, NodeLoss(name, low, shares[name], precision, cost.half if precision == "bf16" else cost.full))
                    for precision, worth in steps_of(low, half, cost)]
        progress(len(shares) + done, 2 * len(shares))
    late = [NodeLoss(name, None, share, cost=usual_cost(share).full) for name, share in shares.items() if name not in errors]
    return [step for _, step in sorted(ordered, key=lambda step: -step[0])] + sorted(late, key=lambda step: step.cost)


def usual_cost(share: float) -> Cost:
    """What a node costs that was not measured: bfloat16 takes twice as long as eight bits, float32 four times as long."""
    return Cost(share, 3 * share)


def steps_of(low: float, half: float, cost: Cost) -> list[tuple[Higher, float]]:
    """The steps of a node from the low precision to float32, and what each takes off the squared error for what it costs.

    low, half: its error in the low precision and in bfloat16, alone. bfloat16 is left out where it takes off less for its cost than
    float32 does behind it.
    """
    by_half = (low**2 - half**2) / max(cost.half, LEAST)
    by_float = half**2 / max(cost.full - cost.half, LEAST)
    return [("bf16", by_half), ("fp32", by_float)] if by_half > by_float else [("fp32", low**2 / max(cost.full, LEAST))]


def as_arrays(images: NDArray[np.uint8], run: Callable[[NDArray[np.uint8]], MapArray]) -> list[MapArray]:
    """The map of each image."""
    return [run(image) for image in images]

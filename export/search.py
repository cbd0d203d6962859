"""The precision search: from all nodes in the low precision, float is given back to those that spoil the map most for what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from edge.errors import EngineError
from edge.rule import MapArray

Maps = Callable[[Path], list[MapArray]]  # of a graph, for the images of the search
WORST = 1e6  # the error of a map that is not finite


@dataclass(frozen=True)
class NodeLoss:
    """What a node in the low precision does to the map, alone: its error, and its share of the network's multiplications."""

    name: str
    error: float | None  # None: there was no time to measure it
    share: float


def map_error(expected: Sequence[MapArray], got: Sequence[MapArray]) -> float:
    """The noise of maps over the signal in the expected ones: root mean square of both, each over all maps."""
    noise, signal = [], []
    for reference, values in zip(expected, got, strict=True):
        if not np.isfinite(values).all():
            return WORST
        signal.append(float(np.mean((reference - np.median(reference)) ** 2)))
        noise.append(float(np.mean((values - reference) ** 2)))
    return float(np.sqrt(np.mean(noise) / max(float(np.mean(signal)), 1e-24)))


def multiplications(model: ModelProto, size: tuple[int, int, int]) -> dict[str, int]:
    """Multiplications of each product by node name, for one image of ``size`` (height, width, channels); 1 where shapes are not known."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    dims = fixed.graph.input[0].type.tensor_type.shape.dim
    for dim, value in zip(dims, (1, *size), strict=True):
        dim.ClearField("dim_param")
        dim.dim_value = value
    inferred = onnx.shape_inference.infer_shapes(fixed)
    pixels = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]}
    weights = {value.name: int(np.prod(value.dims)) for value in model.graph.initializer}
    counts = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in weights:
            shape = pixels.get(node.output[0] if node.op_type == "Conv" else node.input[0], [])
            counts[node.name] = weights[node.input[1]] * int(np.prod([max(1, d) for d in shape[2:]]))
        elif node.op_type in ("MatMul", "Gemm"):
            depth = pixels.get(node.input[0], [])[-1:] or [1]
            counts[node.name] = int(np.prod([max(1, d) for d in [*pixels.get(node.output[0], []), *depth]]))
    return counts


def enlarging(model: ModelProto) -> set[str]:
    """The names of matrix products of planes, four dimensions, with a constant: these enlarge a map (`detectors.enlarge`).

    They cost little and pass every rounding on to the map.
    """
    constants = {value.name for value in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    planes = {value.name for value in [*inferred.value_info, *inferred.output] if len(value.type.tensor_type.shape.dim) == 4}
    return {node.name for node in model.graph.node
            if node.op_type == "MatMul" and node.output[0] in planes and not constants.isdisjoint(node.input)}


def rank_nodes(nodes: Sequence[str], counts: dict[str, int], write: Callable[[Path, list[str]], None], maps: Maps,
               expected: Sequence[MapArray], folder: Path, deadline: float, progress: Callable[[int, int], None]) -> list[NodeLoss]:
    """The nodes, those first that spoil most for what they cost. Behind ``deadline`` (monotonic s) no more is measured: the rest comes
    last, the cheap ones first.
    """
    total = max(1, sum(counts.get(name, 1) for name in nodes))
    losses = []
    graph = folder / "one.onnx"
    for done, name in enumerate(nodes, 1):
        share = counts.get(name, 1) / total
        if time.monotonic() > deadline:
            losses.append(NodeLoss(name, None, share))
            continue
        write(graph, [other for other in nodes if other != name])
        losses.append(NodeLoss(name, map_error(expected, maps(graph)), share))
        progress(done, len(nodes))
    measured = [loss for loss in losses if loss.error is not None]
    measured.sort(key=lambda loss: -((loss.error or 0.0) ** 2) / max(loss.share, 1e-4))
    return measured + sorted((loss for loss in losses if loss.error is None), key=lambda loss: loss.share)


def fewest_kept(ranked: Sequence[NodeLoss], limit: float, write: Callable[[Path, list[str]], None], maps: Maps,
                expected: Sequence[MapArray], folder: Path, known: dict[int, float]) -> int:
    """How many of the first nodes must stay float for a map error of at most ``limit``: found by bisection.

    known: errors by that number, kept over calls.
    """
    graph = folder / "several.onnx"
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if middle not in known:
            write(graph, [loss.name for loss in ranked[:middle]])
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

"""What the channels of tensors hold, and how those of one tensor are made alike before it is rounded to eight bits.

One scale for a whole tensor wastes the levels of channels that hold little. So each is divided by a number of its own before the tensor is
rounded, and the weights that read it are multiplied by the same (Xiao et al., SmoothQuant, ICML 2023, equation 4): OpenVINO rounds
channels with scales of their own for nothing, and TensorRT takes the multiplication into what is before it.

By hand, since the library's calibrators know the range of a tensor, and not those of its channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CONVOLUTIONS = ("Conv", "ConvTranspose")
EVENNESS = 0.5  # 0: their weights are alike then; 1: what they hold is
LEAST = 1e-3  # of the largest channel's values, and of the largest weight: what any is taken to be at least
CUT = 99.9  # percentile of a defective image's channel; what lies beyond may be cut off


@dataclass(frozen=True)
class Held:
    """What the channels of a tensor held over images, each ``[C]``."""

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    mean: NDArray[np.float64]

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))

    def divided(self, by: NDArray[np.float32]) -> Held:
        """The same of the tensor whose channels are divided by ``by``, ``[C]``."""
        return Held(self.lowest / by, self.highest / by, self.mean / by)


def activations(model: ModelProto, names: Iterable[str]) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """A function that gives these tensors of a float32 graph for an image uint8 ``[H, W, C]``."""
    names, opened = list(names), copy.deepcopy(model)
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    return lambda image: dict(zip(names, session.run(None, {source: image[None]}), strict=True))


def observe(model: ModelProto, names: Iterable[str], good: NDArray[np.uint8], defective: NDArray[np.uint8],
            progress: Callable[[int, int], None] = lambda *_: None) -> tuple[dict[str, Held], dict[str, Held]]:
    """What the channels of tensors ``[N, C, ...]`` hold: over good and defective images uint8 ``[N, H, W, C]``, and the same without the
    outermost values of the defective ones. Means are those of the good ones.

    What a part must not have drives tensors out of the range that good parts need, and the map is to show it.
    """
    run = activations(model, names) if (names := list(names)) else lambda _: {}
    whole: dict[str, Held] = {}
    cut: dict[str, Held] = {}
    total = len(good) + len(defective)
    for done, image in enumerate(good, 1):
        for name, values in run(image).items():
            inner = (0, *range(2, values.ndim))
            mean = values.mean(inner, dtype=np.float64) / len(good)
            _hold(whole, name, values.min(inner), values.max(inner), mean)
        progress(done, total)
    cut = dict(whole)
    for done, image in enumerate(defective, len(good) + 1):
        for name, values in run(image).items():
            channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
            low, lower, upper, high = np.percentile(channels, [0, 100 - CUT, CUT, 100], axis=1).astype(np.float32)
            _hold(whole, name, low, high)
            _hold(cut, name, lower, upper)
        progress(done, total)
    return whole, cut


def _hold(held: dict[str, Held], name: str, low: NDArray[np.float32], high: NDArray[np.float32],
          mean: NDArray[np.float64] | float = 0.0) -> None:
    before = held.get(name)
    held[name] = Held(low, high, np.asarray(mean)) if before is None else Held(
        np.minimum(before.lowest, low), np.maximum(before.highest, high), before.mean + mean)


def even(model: ModelProto, nodes: Iterable[str], held: Mapping[str, Held],
         evenness: float = EVENNESS) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Let the convolutions ``nodes`` of a graph read tensors whose channels are alike, and weights that make up for it.

    held: what the channels of their inputs hold. Returns for each new tensor the one that it was made of, and what that was divided by,
    ``[C]``. Nodes that read it otherwise read it as it was.
    """
    constants = {value.name: value for value in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    chosen = set(nodes)
    for node in model.graph.node:
        if node.name in chosen and node.op_type in CONVOLUTIONS:
            readers.setdefault(node.input[0], []).append(node)
    made = {}
    for name, convolutions in readers.items():
        columns = np.max([_columns(node, constants) for node in convolutions], axis=0)
        by = divisors(held[name].largest, columns, evenness)
        new = f"{name}_even"
        model.graph.initializer.append(numpy_helper.from_array((1 / by).reshape(1, -1, 1, 1), f"{new}_factors"))
        for node in convolutions:
            weights = _as_groups(node, constants)
            weights *= by.reshape(weights.shape[0], 1, -1, *[1] * (weights.ndim - 3))
            _put(node, constants, weights)
            node.input[0] = new
        made[new] = (name, by)
    _insert(model, {old: helper.make_node("Mul", [old, f"{new}_factors"], [new], new) for new, (old, _) in made.items()})
    return made


def divisors(largest: NDArray[np.float32], columns: NDArray[np.float32], evenness: float = EVENNESS) -> NDArray[np.float32]:
    """What to divide channels by, ``[C]``, the largest 1. largest: absolute values; columns: their weights over the largest weight of
    each output, at most 1.

    A channel that hardly held anything keeps room for more: on a defect it may.
    """
    room = np.maximum(largest, LEAST * max(float(largest.max()), 1e-12))
    by = room**evenness / np.maximum(columns, LEAST) ** (1 - evenness)
    return np.asarray(by / by.max(), np.float32)


def _as_groups(node: NodeProto, constants: Mapping[str, TensorProto]) -> NDArray[np.float32]:
    """A convolution's weights as ``[groups, outputs, inputs, ...]``."""
    weights = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
    groups = next((value.i for value in node.attribute if value.name == "group"), 1)
    weights = weights.reshape(groups, -1, *weights.shape[1:])
    return weights if node.op_type == "Conv" else weights.swapaxes(1, 2).copy()


def _put(node: NodeProto, constants: Mapping[str, TensorProto], weights: NDArray[np.float32]) -> None:
    """The other way round."""
    weights = weights if node.op_type == "Conv" else weights.swapaxes(1, 2)
    constants[node.input[1]].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights.reshape(-1, *weights.shape[2:])), node.input[1]))


def _columns(node: NodeProto, constants: Mapping[str, TensorProto]) -> NDArray[np.float32]:
    """The largest weight that each input channel has, as a share of the largest one of the same output: ``[C]``."""
    weights = _as_groups(node, constants)
    sizes = np.abs(weights).reshape(*weights.shape[:3], -1).max(3)
    return np.asarray((sizes / np.maximum(sizes.max(2, keepdims=True), 1e-12)).max(1).ravel())


def _insert(model: ModelProto, behind: Mapping[str, NodeProto]) -> None:
    """Put nodes right behind those that give the tensors by whose names they are given; first, where it is an input of the graph."""
    nodes = [behind[value.name] for value in model.graph.input if value.name in behind]
    for node in model.graph.node:
        nodes += [node, *(behind[name] for name in node.output if name in behind)]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)

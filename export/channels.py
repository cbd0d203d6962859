"""Ranges of the channels of tensors, and how a tensor's channels are equalised before it is rounded to eight bits.

One scale for a whole tensor wastes levels on channels with small values. So each channel is divided by a factor of its
own before the tensor is rounded, and the weights that read it are multiplied by the same factor (Xiao et al.,
SmoothQuant, ICML 2023, equation 4). OpenVINO rounds channels with scales of their own at no cost, and TensorRT merges
the multiplication into the node before. A tensor that is the scaled image loses nothing: its steps are the camera's.

This is code of our own because the library's calibrators measure ranges of tensors, not of channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CONVOLUTIONS = ("Conv", "ConvTranspose")
EVENNESS = 0.5  # 0: equalises the channels' weights; 1: equalises the channels' values
LEAST = 1e-3  # least value assumed of any channel or weight, as a share of the largest
MIDDLE = 128  # grey level of the zero of signed eight bits
NEAR = 8  # an image's zero must be this close to it, in grey levels, so that few bright or dark values are clipped
SCALING = ("Cast", "Identity", "Transpose", "Reshape", "Div", "Mul", "Sub", "Add")
CUT = 99.9  # percentile of a defective image's channel; values above may be clipped


@dataclass(frozen=True)
class Held:
    """The ranges and means of a tensor's channels over images, each ``[C]``."""

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    mean: NDArray[np.float64]

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))

    def divided(self, by: NDArray[np.float32]) -> Held:
        """The ranges of the tensor with its channels divided by ``by``, ``[C]``."""
        return Held(self.lowest / by, self.highest / by, self.mean / by)


class Scaled(NamedTuple):
    """An image whose pixel values were multiplied by ``step`` and had ``black`` added, each ``[C]``."""

    step: NDArray[np.float32]
    black: NDArray[np.float32]


class Made(NamedTuple):
    """A tensor with equalised channels: (``source`` - ``shift``) / ``by``, each ``[C]``, and its ranges."""

    source: str
    by: NDArray[np.float32]
    shift: NDArray[np.float32]
    held: Held
    exact: bool = False  # a scaled image, of which each grey level keeps its own step


def activations(model: ModelProto,
                names: Iterable[str]) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """A function that returns these tensors of a float32 graph for an image uint8 ``[H, W, C]``."""
    names, opened = list(names), copy.deepcopy(model)
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    return lambda image: dict(zip(names, session.run(None, {source: image[None]}), strict=True))


def observe(model: ModelProto, names: Iterable[str], good: NDArray[np.uint8], defective: NDArray[np.uint8],
            progress: Callable[[int, int], None] = lambda *_: None) -> tuple[dict[str, Held], dict[str, Held]]:
    """The ranges of the channels of tensors ``[N, C, ...]`` over good and defective images uint8 ``[N, H, W, C]``, once
    with and once without the outermost values of the defective ones. Means are over the good images.

    Defects drive tensors out of the range of good parts, and the map must still show them.
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


def scaled_images(model: ModelProto, like: NDArray[np.uint8]) -> dict[str, Scaled]:
    """The tensors of a graph that are its scaled image, by name. like: an image, uint8 ``[H, W, C]``."""
    constants = {value.name for value in model.graph.initializer}
    known = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    for node in model.graph.node:
        if node.op_type in SCALING and node.input[0] in known and (node.op_type == "Reshape"
                                                                   or constants.issuperset(node.input[1:])):
            known.update(node.output)
    names = [name for node in model.graph.node if node.op_type == "Conv" for name in node.input[:1] if name in known]
    if not names:
        return {}
    run = activations(model, dict.fromkeys(names))
    black, white = run(np.zeros_like(like)), run(np.full_like(like, 255))
    found = {}
    for name in black:
        low, high = (np.moveaxis(values[name], 1, 0).reshape(values[name].shape[1], -1) for values in (black, white))
        step = np.asarray((high[:, 0] - low[:, 0]) / np.float32(255), np.float32)
        if np.ptp(low, axis=1).max() == 0 and np.ptp(high, axis=1).max() == 0 and (step > 0).all():
            found[name] = Scaled(step, low[:, 0])
    return found


def even(model: ModelProto, nodes: Iterable[str], held: Mapping[str, Held], evenness: float = EVENNESS,
         scaled: Mapping[str, Scaled] | None = None) -> dict[str, Made]:
    """Let the convolutions ``nodes`` read tensors with equalised channels, and adapt their weights to that.

    held: the ranges of their inputs' channels; scaled: the result of `scaled_images`. Returns the new tensors by name.
    Other nodes keep reading the old tensors.
    """
    constants = {value.name: value for value in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    chosen = set(nodes)
    for node in model.graph.node:
        if node.name in chosen and node.op_type in CONVOLUTIONS:
            readers.setdefault(node.input[0], []).append(node)
    made = {}
    for name, convolutions in readers.items():
        new = f"{name}_even"
        plain = all(node.op_type == "Conv" and constants.keys() >= {*filter(None, node.input[2:])}
                    for node in convolutions)
        image = (scaled or {}).get(name) if plain else None
        exact = None if image is None else _steps(name, held[name], image)
        if exact is None:
            columns = np.max([_columns(node, constants) for node in convolutions], axis=0)
            # depthwise: each channel has its own weights
            apart = all(_as_groups(node, constants).shape[2] == 1 for node in convolutions)
            by = divisors(held[name].largest, columns, (1 + evenness) / 2 if apart else evenness)
            made[new] = Made(name, by, np.zeros_like(by), held[name].divided(by))
        else:
            made[new] = exact
        by, shift = made[new].by, made[new].shift
        for node in convolutions:
            weights = _as_groups(node, constants)
            if shift.any():
                _add_to_bias(model, node, constants, weights, shift)
            weights *= by.reshape(weights.shape[0], 1, -1, *[1] * (weights.ndim - 3))
            _put(node, constants, weights)
            node.input[0] = new
    behind: dict[str, list[NodeProto]] = {}
    for new, (source, by, shift, *_) in made.items():
        model.graph.initializer.append(numpy_helper.from_array((1 / by).reshape(1, -1, 1, 1), f"{new}_factors"))
        behind[source] = [helper.make_node("Mul", [source, f"{new}_factors"], [new], new)]
        if shift.any():
            model.graph.initializer.append(numpy_helper.from_array(shift.reshape(1, -1, 1, 1), f"{new}_shift"))
            behind[source].insert(0, helper.make_node("Sub", [source, f"{new}_shift"], [f"{new}_shifted"],
                                                      f"{new}_shifted"))
            behind[source][1].input[0] = f"{new}_shifted"
    _insert(model, behind)
    return made


def _steps(name: str, held: Held, image: Scaled) -> Made | None:
    """A scaled image in eight-bit steps of one grey level each; None if its zero is too far from the middle level.

    A zero between two levels is moved to the nearest, by half a level at most; only paddings are affected by that.
    """
    largest = float(image.step.max())
    by = np.asarray(image.step / largest, np.float32)
    zero = np.rint(-image.black / image.step)
    shift = np.asarray(image.black + zero * image.step, np.float32)
    shift[np.abs(shift) < 1e-3 * image.step] = 0  # float32's own rounding
    room = np.full(len(by), 127 * largest, np.float32)
    mean = (held.mean - shift) / by
    if (np.abs(zero - MIDDLE) <= NEAR).all():
        return Made(name, by, shift, Held(-room, room, mean), True)
    if (zero == 0).all():  # never negative: OpenVINO halves the steps of such tensors
        return Made(name, by, shift, Held(0 * room, 2 * room, mean), True)
    return None


def _add_to_bias(model: ModelProto, node: NodeProto, constants: dict[str, TensorProto], weights: NDArray[np.float32],
                 shift: NDArray[np.float32]) -> None:
    """Add to a convolution's bias what it loses because ``shift``, ``[C]``, was subtracted from its input.

    weights: in the layout of `_as_groups`.
    """
    sums = weights.reshape(*weights.shape[:3], -1).sum(3)
    lost = np.einsum("goi,gi->go", sums, shift.reshape(weights.shape[0], -1)).ravel()
    bias = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] else np.float32(0)
    constants[f"{node.name}_bias_shifted"] = numpy_helper.from_array(np.asarray(bias + lost, np.float32),
                                                                     f"{node.name}_bias_shifted")
    model.graph.initializer.append(constants[f"{node.name}_bias_shifted"])
    del node.input[2:]
    node.input.append(f"{node.name}_bias_shifted")


def divisors(largest: NDArray[np.float32], columns: NDArray[np.float32],
             evenness: float = EVENNESS) -> NDArray[np.float32]:
    """The factors to divide channels by, ``[C]``, the largest being 1.

    largest: absolute values of the channels; columns: their largest weights as a share of each output's largest weight.
    A channel with hardly any values keeps headroom, because a defect may need it.
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
    """The inverse of `_as_groups`."""
    weights = weights if node.op_type == "Conv" else weights.swapaxes(1, 2)
    array = np.ascontiguousarray(weights.reshape(-1, *weights.shape[2:]))
    constants[node.input[1]].CopyFrom(numpy_helper.from_array(array, node.input[1]))


def _columns(node: NodeProto, constants: Mapping[str, TensorProto]) -> NDArray[np.float32]:
    """The largest weight of each input channel, as a share of the largest weight of the same output: ``[C]``."""
    weights = _as_groups(node, constants)
    sizes = np.abs(weights).reshape(*weights.shape[:3], -1).max(3)
    return np.asarray((sizes / np.maximum(sizes.max(2, keepdims=True), 1e-12)).max(1).ravel())


def _insert(model: ModelProto, behind: Mapping[str, list[NodeProto]]) -> None:
    """Insert nodes directly after the nodes that produce the tensors they are keyed by, or first for an input of the
    graph.
    """
    nodes = [node for value in model.graph.input for node in behind.get(value.name, [])]
    for node in model.graph.node:
        nodes += [node, *(other for name in node.output for other in behind.get(name, []))]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)

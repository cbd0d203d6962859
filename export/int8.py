"""INT8 graphs: explicit QuantizeLinear and DequantizeLinear around the quantised products, and nowhere else.

Weights are int8 with a scale for each output channel, activations int8 with a scale for each tensor, both symmetric;
biases stay float32. TensorRT parses this (zero-points zero, no int32 bias), and OpenVINO runs it in integers. ONNX
Runtime writes the pairs, around tensors with equalised channels (`export.channels`). Pairs around tensors that are
never negative are marked by name: OpenVINO gives these all 256 levels (`edge.engines.openvino_graphs.round_finely`).
`correct_biases` subtracts from each bias the average shift that rounded weights cause.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edge.base.errors import EngineError
from edge.engines.openvino_graphs import BFLOAT16, NOT_NEGATIVE
from export.channels import CONVOLUTIONS, EVENNESS, Held, even, observe, scaled_images
from export.search import Kept, enlarging

Ranges = Literal["minmax", "percentile"]
LEAST_OPSET = 13
QUANTISED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
# Operators by the sign of their output: never negative; like the first input; never negative if no input is.
NEVER_NEGATIVE = {"Relu", "Sigmoid", "Abs", "Sqrt", "Exp", "Softmax", "Softplus", "ReduceL1", "ReduceL2",
                  "ReduceSumSquare"}
AS_THE_FIRST = {"Cast", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile",
                "Slice", "Split", "Gather", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
                "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "DepthToSpace", "SpaceToDepth"}
AS_ALL = {"Add", "Mul", "Div", "Min", "Concat", "MatMul", "Conv", "ConvTranspose", "Gemm"}


def load_named(graph: Path) -> ModelProto:
    """An ONNX graph in which every node has a unique name, and no two products share weights.

    A graph below opset 13, which scales for each channel need, is converted. Raises EngineError if that fails.
    """
    model = onnx.load(graph)
    if any(opset.domain == "" and opset.version < LEAST_OPSET for opset in model.opset_import):
        try:
            model = onnx.version_converter.convert_version(model, LEAST_OPSET)
        except Exception as error:  # its type depends on the operator without a conversion
            raise EngineError(f"the graph cannot be brought to opset {LEAST_OPSET}",
                              got=str(error).splitlines()[0]) from error
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)
    constants = {value.name: value for value in model.graph.initializer}
    used: set[str] = set()
    for node in model.graph.node:
        if node.op_type in QUANTISED and node.input[1] in constants:
            if node.input[1] in used:  # a node that stays float32 must not read another's INT8 weights
                own = TensorProto()
                own.CopyFrom(constants[node.input[1]])
                own.name = f"{node.input[1]}_of_{node.name}"
                model.graph.initializer.append(own)
                node.input[1] = own.name
            used.add(node.input[1])
    return model


def quantisable(model: ModelProto) -> list[NodeProto]:
    """The nodes that INT8 makes faster: convolutions and matrix products with constant weights."""
    constants = {value.name for value in model.graph.initializer}
    others = enlarging(model)
    return [node for node in model.graph.node if node.op_type in QUANTISED and node.input[1] in constants
            and node.input[0] not in constants and node.name not in others]


class Int8Graphs:
    """INT8 graphs of one float32 graph, with ranges that are measured once."""

    def __init__(self, graph: Path, images: NDArray[np.uint8], defective: NDArray[np.uint8] | None = None,
                 progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """images: good ones, uint8 ``[N, H, W, C]``; defective: others. The activations' ranges include both."""
        self.model = load_named(graph)
        nodes = quantisable(self.model)
        self.nodes = [node.name for node in nodes]
        self._not_negative = not_negative(self.model)
        self._scaled = scaled_images(self.model, images[0])
        whole, cut = observe(self.model, sorted({node.input[0] for node in nodes}), images,
                             images[:0] if defective is None else defective, progress)
        self._held: dict[Ranges, dict[str, Held]] = {"minmax": whole, "percentile": cut}
        logging.getLogger().setLevel(logging.ERROR)  # the library warns about graphs that it has not prepared itself

    def write(self, path: Path, kept: Kept, ranges: Ranges, evenness: float = EVENNESS) -> None:
        """Write the graph with all products in INT8 except those ``kept`` in float32, or in bfloat16 where the
        processor has it.

        evenness: degree of channel equalisation, 0 to 1.
        """
        halves = {name for name, precision in kept.items() if precision == "bf16"}
        quantised = [name for name in self.nodes if name not in kept]
        model, held = copy.deepcopy(self.model), dict(self._held[ranges])
        made = even(model, quantised, held, evenness, self._scaled)
        held |= {name: new.held for name, new in made.items()}
        exact = copy.deepcopy(model)
        if quantised:
            model = _with_pairs(model, quantised, held)
            read_raw(model, set(quantised))
            mark(model, self._not_negative | {name for name, new in made.items() if new.source in self._not_negative})
        correct_biases(model, exact, {name: channels.mean for name, channels in held.items()}, halves)
        onnx.save(rename(model, halves), path)

    def limits(self, ranges: Ranges, kept: Iterable[str], evenness: float = EVENNESS) -> dict[str, NDArray[np.float32]]:
        """The largest representable absolute values of each activation that an INT8 node reads, by tensor.

        float32 ``[C, 1, 1]``, or one number if its channels are not equalised.
        """
        quantised, held = [name for name in self.nodes if name not in set(kept)], self._held[ranges]
        model = copy.deepcopy(self.model)
        made = even(model, quantised, held, evenness, self._scaled)
        limits = {new.source: (new.held.largest.max() * new.by).reshape(-1, 1, 1) for new in made.values()
                  if not new.exact}
        others = {node.input[0] for node in model.graph.node if node.name in quantised} - set(made)
        return limits | {name: held[name].largest.max() for name in others}


def _with_pairs(model: ModelProto, quantised: list[str], held: Mapping[str, Held]) -> ModelProto:
    """A graph in which these nodes read rounded tensors and rounded weights."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    names = {node.input[0] for node in model.graph.node if node.name in set(quantised)}
    largest = {name: np.float32(held[name].largest.max()) for name in names}
    ranges = TensorsData(CalibrationMethod.MinMax, {name: (np.array(-value), np.array(value)) for name,
                                                    value in largest.items()})
    quantizer = QDQQuantizer(
        model, True, False, QuantType.QInt8, QuantType.QInt8, ranges, quantised, [], list(QUANTISED),
        {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "DedicatedQDQPair": False,
         "OpTypesToExcludeOutputQuantization": [*QUANTISED, "Add"]})
    quantizer.quantize_model()
    return quantizer.model.model


def read_raw(model: ModelProto, quantised: set[str]) -> None:
    """Let all nodes that are not quantised read the original tensor instead of its quantised copy.

    Otherwise a residual would be taken from an image rounded to 256 levels, and every skip connection would be rounded.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    raw = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and (source := producers.get(node.input[0])) is not None \
                and source.op_type == "QuantizeLinear":
            raw[node.output[0]] = source.input[0]
    for node in model.graph.node:
        if node.name not in quantised:
            for index, name in enumerate(node.input):
                if name in raw:
                    node.input[index] = raw[name]


def rename(model: ModelProto, halves: set[str]) -> ModelProto:
    """Mark these nodes by name as products in bfloat16."""
    for node in model.graph.node:
        if node.name in halves:
            node.name += BFLOAT16
    return model


def mark(model: ModelProto, known: set[str]) -> None:
    """Mark by name the QuantizeLinear and DequantizeLinear nodes of the tensors in ``known``, which are never
    negative.
    """
    pairs: set[str] = set()  # tensors between the two
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in known:
            pairs.update(node.output)
    for node in model.graph.node:
        if not pairs.isdisjoint(node.output if node.op_type == "QuantizeLinear" else node.input[:1]):
            node.name += NOT_NEGATIVE


def not_negative(model: ModelProto) -> set[str]:
    """The names of the tensors that cannot be negative, whatever the image."""
    known = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    known |= {name for name, value in constants.items() if value.dtype.kind in "fiu" and (value >= 0).all()}
    for node in model.graph.node:
        kind, inputs = node.op_type, [name for name in node.input if name]
        if kind in AS_THE_FIRST or kind == "Resize":
            proven = inputs[0] in known and not any(value.name == "mode" and value.s == b"cubic"
                                                    for value in node.attribute)
        elif kind == "Clip":
            proven = inputs[0] in known or (len(node.input) > 1 and node.input[1] in constants
                                            and node.input[1] in known)
        elif kind == "Pow":
            proven = inputs[0] in known or (inputs[1] in constants and bool((constants[inputs[1]] % 2 == 0).all()))
        elif kind == "Max":
            proven = not known.isdisjoint(inputs)
        elif kind == "Pad":
            proven = inputs[0] in known and (len(node.input) < 3 or not node.input[2] or node.input[2] in known)
        elif kind == "Mul" and inputs[0] == inputs[1]:
            proven = True
        else:
            proven = kind in NEVER_NEGATIVE or (kind in AS_ALL and known.issuperset(inputs))
        if proven:
            known.update(node.output)
    return known


def correct_biases(model: ModelProto, original: ModelProto, means: dict[str, NDArray[np.float64]],
                   halves: set[str]) -> None:
    """Subtract from each convolution's bias the shift that its rounded weights cause at the mean of its input.

    Nagel, van Baalen, Blankevoort, Welling, ICCV 2019, section 4.2, with measured means. After a ReLU no mean is zero,
    so rounded weights shift whole channels. halves: the nodes whose weights are rounded to bfloat16.
    """
    constants = {value.name: value for value in model.graph.initializer}
    nodes = {node.name: node for node in original.graph.node}
    exact = {value.name: value for value in original.graph.initializer}
    rounded = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"
               and node.input[0] in constants}
    for node in model.graph.node:
        has_bias = len(node.input) > 2 and node.input[2] != ""
        if node.op_type not in CONVOLUTIONS or (has_bias and node.input[2] not in constants):
            continue
        if node.input[1] not in rounded and node.name not in halves:
            continue
        weights = numpy_helper.to_array(exact[nodes[node.name].input[1]]).astype(np.float64)
        if node.input[1] in rounded:
            used = _dequantised(rounded[node.input[1]], constants, weights.ndim)
        else:
            used = weights.astype(bfloat16).astype(np.float64)
        error = (used - weights).sum(tuple(range(2, weights.ndim)))  # [out, in / group], or [in, out / group]
        mean = means[nodes[node.name].input[0]]
        attributes = {value.name: onnx.helper.get_attribute_value(value) for value in node.attribute}
        groups = attributes.get("group", 1)
        if node.op_type == "Conv":
            shift = (error.reshape(groups, -1, error.shape[1]) @ mean.reshape(groups, -1, 1)).ravel()
        else:  # of its taps, one in each stride x stride area meets a value
            shift = (mean.reshape(groups, 1, -1) @ error.reshape(groups, -1, error.shape[1])).ravel()
            shift /= np.prod(attributes.get("strides", [1]))
        bias = numpy_helper.to_array(constants[node.input[2]]) if has_bias else np.float32(0)
        name = f"{node.name}_bias_corrected"
        model.graph.initializer.append(numpy_helper.from_array((bias - shift).astype(np.float32), name))
        del node.input[2:]
        node.input.append(name)


def _dequantised(pair: NodeProto, constants: dict[str, TensorProto], dimensions: int) -> NDArray[np.float64]:
    """Quantised weights as real numbers."""
    quantised, scale = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in pair.input[:2])
    attributes = {value.name: onnx.helper.get_attribute_value(value) for value in pair.attribute}
    shape = [1] * dimensions
    shape[attributes.get("axis", 1) if scale.size > 1 else 0] = scale.size
    return quantised * scale.reshape(shape)

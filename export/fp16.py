"""FP16 graphs, and float32 graphs that round like them, to measure FP16 on hardware without float16.

On processors, runtimes compute a float16 graph in float32 or bfloat16, so a sum that overflows float16 goes unnoticed.
The graph that is *measured* is therefore the float32 one, with each tensor around a half node rounded to float16.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.search import enlarging

# In half: products, and the operators that pass their results on. Softmax, norms, divisions, powers, means and
# distances
# stay in float32.
HALF = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "LeakyRelu", "PRelu", "Clip", "MaxPool", "Concat",
                  "Add", "Pad"})
MULTIPLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def half_nodes(model: ModelProto, keep: Iterable[str]) -> list[NodeProto]:
    """The nodes that run in float16: products except those in ``keep``, and the nodes that pass their results on to
    further products. The nodes after the last product make the map, and stay in float32.
    """
    multiply = {node.name for node in model.graph.node if node.op_type in MULTIPLY} - enlarging(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    feeds: dict[str, bool] = {}  # whether a product follows a node
    for node in reversed(model.graph.node):
        feeds[node.name] = any(reader.name in multiply or feeds.get(reader.name, False)
                               for name in node.output for reader in readers.get(name, []))
    kept = set(keep)
    floats = _float_tensors(model)
    half: list[NodeProto] = []
    given: set[str] = set()  # tensors in float16
    for node in model.graph.node:
        if node.op_type not in HALF or node.name in kept or node.output[0] not in floats:
            continue
        if node.name in multiply or (feeds[node.name] and not given.isdisjoint(node.input)):
            half.append(node)
            given.update(node.output)
    return half


def _float_tensors(model: ModelProto) -> set[str]:
    """The names of all float32 outputs of nodes. A tensor whose type cannot be inferred is not listed, and stays as it
    is.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def products(model: ModelProto) -> list[str]:
    """The nodes that a search may keep in float32."""
    return [node.name for node in half_nodes(model, ()) if node.op_type in MULTIPLY]


def write_fp16(model: ModelProto, path: Path, keep: Iterable[str]) -> None:
    """Write the graph with its half nodes in float16, casts at their borders, and everything else unchanged.

    ONNX Runtime's converter is not used because it also rounds the results of nodes that stay float32.
    """
    half = {node.name for node in half_nodes(model, keep)}
    written = copy.deepcopy(model)
    del written.graph.value_info[:]
    constants = {value.name: value for value in written.graph.initializer}
    floats = _float_tensors(model) | {name for name, value in constants.items() if value.data_type == TensorProto.FLOAT}
    outside = {name for node in model.graph.node if node.name not in half for name in node.input}
    outside |= {value.name for value in model.graph.output}
    nodes: list[NodeProto] = []
    known: set[str] = set()  # tensors that exist in float16

    def in_half(name: str) -> str:
        made = f"{name}_half"
        if name not in known:
            known.add(name)
            if name in constants:
                with np.errstate(over="ignore"):
                    written.graph.initializer.append(
                        numpy_helper.from_array(numpy_helper.to_array(constants[name]).astype(np.float16), made))
            else:
                nodes.append(helper.make_node("Cast", [name], [made], f"{name}_to_half", to=TensorProto.FLOAT16))
        return made

    for node in model.graph.node:
        made = NodeProto()
        made.CopyFrom(node)
        if node.name not in half:
            nodes.append(made)
            continue
        made.input[:] = [in_half(name) if name in floats else name for name in node.input]
        made.output[:] = [f"{name}_half" for name in node.output]
        nodes.append(made)
        known.update(node.output)
        nodes += [helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_from_half", to=TensorProto.FLOAT)
                  for name in node.output if name in outside]
    _replace_nodes(written, nodes)
    onnx.save(written, path)


def _replace_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Replace a graph's nodes by these, and drop constants that none of them reads."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [value for value in model.graph.initializer if value.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def write_rounded(model: ModelProto, path: Path, keep: Iterable[str]) -> None:
    """Write the float32 graph with every input and output of a half node rounded to float16.

    The rounding is done in float32 arithmetic, exact to the last bit, because OpenVINO removes casts to float16 and
    back.
    """
    rounded = copy.deepcopy(model)
    constants = {value.name: value for value in rounded.graph.initializer}
    half = {node.name for node in half_nodes(model, keep)}
    nodes: list[NodeProto] = []
    known: dict[str, str] = {}  # tensor -> its rounded copy

    def through_half(name: str) -> str:
        if name not in known:
            known[name] = f"{name}_rounded"
            if name in constants:
                with np.errstate(over="ignore"):
                    values = numpy_helper.to_array(constants[name]).astype(np.float16).astype(np.float32)
                rounded.graph.initializer.append(numpy_helper.from_array(values, known[name]))
            else:
                nodes.extend(rounding(name, known[name]))
        return known[name]

    floats = _float_tensors(model) | {name for name, value in constants.items() if value.data_type == TensorProto.FLOAT}
    outputs = {value.name for value in rounded.graph.output}
    for node in rounded.graph.node:
        made = NodeProto()
        made.CopyFrom(node)
        if node.name in half:
            made.input[:] = [through_half(name) if name in floats else name for name in node.input]
        else:
            made.input[:] = [known[name] if name in known and name not in constants else name for name in node.input]
        nodes.append(made)
        if node.name in half:
            for name in node.output:
                if name not in outputs:
                    through_half(name)
                    continue
                made.output[0] = f"{name}_exact"
                nodes.extend(rounding(f"{name}_exact", name))
    rounded.graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name,
                                     value in ROUNDING.items())
    del rounded.graph.value_info[:]
    _replace_nodes(rounded, nodes)
    onnx.save(rounded, path)


ROUNDING = {"half_split": 2.0**13 + 1, "half_grid": 0.75, "half_least": 2.0**-14, "half_beyond": 65520.0,
            "half_overflow": 3e38}


def rounding(source: str, target: str) -> list[NodeProto]:
    """Nodes that round float32 to the nearest float16, ties to even.

    To 11 bits by Dekker's split with Veltkamp's constant; below the smallest normal number to multiples of 2^-24, which
    are what a sum with 0.75 keeps in float32; from 65520 on to infinity.
    """
    def node(kind: str, inputs: list[str], output: str) -> NodeProto:
        return helper.make_node(kind, [f"{target}_{name[1:]}" if name[0] == "." else name for name in inputs],
                                [target if not output else f"{target}_{output}"], f"{target}_{output}")

    return [
        node("Mul", [source, "half_split"], "product"),
        node("Sub", [".product", source], "rest"),
        node("Sub", [".product", ".rest"], "normal"),
        node("Abs", [source], "size"),
        node("Max", [".size", "half_grid"], "grid"),  # the constant itself, but OpenVINO cannot fold it into a sum
        node("Add", [source, ".grid"], "raised"),
        node("Sub", [".raised", ".grid"], "subnormal"),
        node("Less", [".size", "half_least"], "small"),
        node("Where", [".small", ".subnormal", ".normal"], "finite"),
        node("Mul", [source, "half_overflow"], "infinite"),
        node("GreaterOrEqual", [".size", "half_beyond"], "large"),
        node("Where", [".large", ".infinite", ".finite"], ""),
    ]

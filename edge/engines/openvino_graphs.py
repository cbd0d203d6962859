"""How an ONNX graph becomes a compiled model of OpenVINO: its INT8 and bfloat16 nodes, and the cache of compiled models."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as opset

from edge.base.files import cache_folder, is_ours_alone, write_bytes_safely

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"}  # of what the graph leaves open
DIGEST = hashlib.sha256().digest_size
KEPT = 32  # compiled models in the cache
NOT_NEGATIVE = "_not_negative"  # ends the name of a DequantizeLinear whose tensor is never negative
BFLOAT16 = "_bfloat16"  # ends the name of a product that multiplies bfloat16 where the processor does
PRODUCTS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
ROUNDING = "256 levels, bfloat16 by name"  # what `compile_model` makes of a graph: a part of the cache's key


@cache
def core() -> ov.Core:
    """The one core of this process.

    On processors with AMX each core's plugin puts a signal stack of its own in place of the thread's, and puts back what was there when it
    goes. Two that do not go in the opposite order leave a stack that is unmapped: the next signal, a mere Ctrl-C, ends the process.
    """
    return ov.Core()


def device_name() -> str:
    """The processor that OpenVINO runs on, and which OpenVINO: the same name stands for the same arithmetic."""
    return f"{str(core().get_property('CPU', 'FULL_DEVICE_NAME')).strip()}, OpenVINO {ov.__version__.partition('-')[0]}"


def runs_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_model(graph: Path, shape: tuple[int, ...], settings: dict[str, Any]) -> ov.CompiledModel:
    """A graph made ready for inputs of one shape. Raises RuntimeError."""
    model = core().read_model(graph)
    model.reshape(ov.PartialShape(list(shape)))
    round_finely(model)
    if runs_bfloat16():
        multiply_bfloat16(model)
    return core().compile_model(model, "CPU", settings)


def round_finely(model: ov.Model) -> None:
    """Let tensors that are never negative have all 256 levels of eight bits, where a symmetric int8 leaves them 128.

    They are known by their names, which end with `NOT_NEGATIVE`. A step is half of the graph's, from 0 to 255: the range stays.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply" or not node.friendly_name.endswith(NOT_NEGATIVE):
            continue
        rounding, scale = node.input_value(0).get_node(), node.input_value(1).get_node()
        while rounding.get_type_name() in ("Convert", "Subtract"):  # of the zero point, which is zero
            rounding = rounding.input_value(0).get_node()
        if rounding.get_type_name() == "FakeQuantize" and scale.get_type_name() == "Constant":
            low = opset.constant(np.float32(0))
            high = opset.constant(np.asarray(127.5 * scale.get_data(), np.float32))
            finer = opset.fake_quantize(rounding.input_value(0), low, high, low, high, 256, name=node.friendly_name)
            node.output(0).replace(finer.output(0))


def multiply_bfloat16(model: ov.Model) -> None:
    """Let the products whose names end with `BFLOAT16` read bfloat16. They add up in float32."""
    for end in model.get_ordered_ops():
        product, bias = end, None
        if end.get_type_name() == "Add" and end.friendly_name.endswith(BFLOAT16):
            product, bias = end.input_value(0).get_node(), end.input_value(1)
        if product.get_type_name() not in PRODUCTS or not end.friendly_name.endswith(BFLOAT16):
            continue
        for i in (0, 1):
            product.set_argument(i, opset.convert(product.input_value(i), "bf16").output(0))
        product.validate_and_infer_types()
        product.friendly_name = end.friendly_name + "/product"
        readers = end.output(0).get_target_inputs()
        if bias is None:
            result = opset.convert(product, "f32")
        else:  # in two parts, so that what is rounded is near to the result
            coarse = opset.convert(bias, "bf16")
            fine = opset.subtract(bias, opset.convert(coarse, "f32"))
            result = opset.add(opset.convert(opset.add(product, coarse), "f32"), fine)
        for reader in readers:
            reader.replace_source_output(result.output(0))


def cached_model(graph: Path, shape: tuple[int, ...], settings: dict[str, Any]) -> ov.CompiledModel:
    """The same from this user's cache; made anew, and put there, where that has none that is whole. Raises RuntimeError.

    OpenVINO's own cache would load a file with a flipped bit without a word, so the files here have their SHA-256 in front.
    """
    key = [hashlib.sha256(graph.read_bytes()).hexdigest(), device_name(), ov.__version__, shape, settings, ROUNDING]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with contextlib.suppress(OSError, RuntimeError):  # not there, or not readable: made anew
        folder = cache_folder("openvino")
        path = folder / f"{name}.blob"
        if is_ours_alone(folder) and is_ours_alone(path):
            data = path.read_bytes()
            if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST]:
                os.utime(path)
                return core().import_model(io.BytesIO(data[DIGEST:]), "CPU", settings)
    compiled = compile_model(graph, shape, settings)
    with contextlib.suppress(OSError, RuntimeError):  # a full disk, a model that cannot be kept: the next start takes longer
        stream = io.BytesIO()
        compiled.export_model(stream)
        data = stream.getvalue()
        path = cache_folder("openvino") / f"{name}.blob"
        write_bytes_safely(path, hashlib.sha256(data).digest() + data)
        path.chmod(0o600)
        _prune(cache_folder("openvino"))
    return compiled


def _prune(folder: Path) -> None:
    """Leave the models that were used last."""
    for path in sorted(folder.glob("*.blob"), key=lambda path: -path.stat().st_mtime)[KEPT:]:
        path.unlink(missing_ok=True)

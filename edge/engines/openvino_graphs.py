"""Compiles ONNX graphs for OpenVINO: adapts their INT8 and bfloat16 nodes, and caches compiled models."""

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

# for nodes whose type the graph leaves open
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "f32"}
DIGEST = hashlib.sha256().digest_size
KEPT = 32  # compiled models in the cache
NOT_NEGATIVE = "_not_negative"  # name suffix of a DequantizeLinear whose tensor is never negative
BFLOAT16 = "_bfloat16"  # name suffix of a product that runs in bfloat16 on processors that have it
PRODUCTS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
ROUNDING = "256 levels, bfloat16 by name"  # how `compile_model` changes a graph; part of the cache's key


@cache
def core() -> ov.Core:
    """The one OpenVINO core of this process.

    On processors with AMX, each core's plugin replaces the thread's signal stack and restores the old one when it is
    destroyed. If two cores are not destroyed in reverse order, the thread keeps a signal stack that is no longer
    mapped, and the next signal, such as Ctrl-C, kills the process.
    """
    return ov.Core()


def device_name() -> str:
    """The processor and OpenVINO's version: the same name stands for the same arithmetic."""
    return f"{str(core().get_property('CPU', 'FULL_DEVICE_NAME')).strip()}, OpenVINO {ov.__version__.partition('-')[0]}"


def runs_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_model(graph: Path, shape: tuple[int, ...], settings: dict[str, Any]) -> ov.CompiledModel:
    """Compile a graph for inputs of one shape. Raises RuntimeError."""
    model = core().read_model(graph)
    model.reshape(ov.PartialShape(list(shape)))
    round_finely(model)
    if runs_bfloat16():
        multiply_bfloat16(model)
    return core().compile_model(model, "CPU", settings)


def round_finely(model: ov.Model) -> None:
    """Give tensors that are never negative all 256 levels of eight bits; symmetric int8 leaves them only 128.

    They are recognised by the suffix `NOT_NEGATIVE`. The range stays; a step becomes half as large.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply" or not node.friendly_name.endswith(NOT_NEGATIVE):
            continue
        rounding, scale = node.input_value(0).get_node(), node.input_value(1).get_node()
        while rounding.get_type_name() in ("Convert", "Subtract"):  # subtracts the zero point, which is zero
            rounding = rounding.input_value(0).get_node()
        if rounding.get_type_name() == "FakeQuantize" and scale.get_type_name() == "Constant":
            low = opset.constant(np.float32(0))
            high = opset.constant(np.asarray(127.5 * scale.get_data(), np.float32))
            finer = opset.fake_quantize(rounding.input_value(0), low, high, low, high, 256, name=node.friendly_name)
            node.output(0).replace(finer.output(0))


def multiply_bfloat16(model: ov.Model) -> None:
    """Convert the inputs of products with the suffix `BFLOAT16` to bfloat16. They still accumulate in float32."""
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
        else:  # the bias in two parts, to keep the rounding error small
            coarse = opset.convert(bias, "bf16")
            fine = opset.subtract(bias, opset.convert(coarse, "f32"))
            result = opset.add(opset.convert(opset.add(product, coarse), "f32"), fine)
        for reader in readers:
            reader.replace_source_output(result.output(0))


def cached_model(graph: Path, shape: tuple[int, ...], settings: dict[str, Any]) -> ov.CompiledModel:
    """Like `compile_model`, but from this user's cache if that has an undamaged copy; otherwise the result is cached.

    OpenVINO's own cache would silently load a file with a flipped bit, so each file here begins with its SHA-256.
    Raises RuntimeError.
    """
    key = [hashlib.sha256(graph.read_bytes()).hexdigest(), device_name(), ov.__version__, shape, settings, ROUNDING]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with contextlib.suppress(OSError, RuntimeError):  # missing or unreadable: compiled again
        folder = cache_folder("openvino")
        path = folder / f"{name}.blob"
        if is_ours_alone(folder) and is_ours_alone(path):
            data = path.read_bytes()
            if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST]:
                os.utime(path)
                return core().import_model(io.BytesIO(data[DIGEST:]), "CPU", settings)
    compiled = compile_model(graph, shape, settings)
    # a full disk, or a model that cannot be exported: the next start compiles it again
    with contextlib.suppress(OSError, RuntimeError):
        stream = io.BytesIO()
        compiled.export_model(stream)
        data = stream.getvalue()
        path = cache_folder("openvino") / f"{name}.blob"
        write_bytes_safely(path, hashlib.sha256(data).digest() + data)
        path.chmod(0o600)
        _prune(cache_folder("openvino"))
    return compiled


def _prune(folder: Path) -> None:
    """Delete all but the most recently used models."""
    for path in sorted(folder.glob("*.blob"), key=lambda path: -path.stat().st_mtime)[KEPT:]:
        path.unlink(missing_ok=True)

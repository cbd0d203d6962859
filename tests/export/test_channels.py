"""Channels that are made alike before a tensor is rounded: the same results in float32, and finer ones in INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.engines.openvino import compile_model
from export.channels import EVENNESS, Held, divisors, even, observe
from export.int8 import Int8Graphs, load_named
from export.maps import OnnxRuntimeMaps, OpenVinoMaps

SIZE = (24, 24, 2)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SIZE), np.uint8)
KINDS = {  # of the second product: its weights' shape for four input channels, attributes
    "Conv": ((3, 4, 3, 3), {}),
    "Conv in groups": ((6, 2, 3, 3), {"group": 2}),
    "Conv of single channels": ((4, 1, 3, 3), {"group": 4}),
    "ConvTranspose": ((4, 3, 3, 3), {}),
    "ConvTranspose in groups": ((4, 2, 3, 3), {"group": 2}),
}


def uneven_graph(path: Path, kind: str) -> Path:
    """image -> conv to four channels, of which the second is a thousandth as large as the first -> Relu -> the product -> their mean."""
    rng = np.random.default_rng(1)
    shape, attributes = KINDS[kind]
    first = rng.normal(0, 0.05, (4, 2, 3, 3)) * np.array([1, 1e-3, 0.1, 1]).reshape(4, 1, 1, 1)
    second = rng.normal(0, 0.05, shape)
    if "of single" in kind or kind.startswith("ConvTranspose"):
        second *= np.array([1, 1e3, 1, 1]).reshape(4, 1, 1, 1)  # the small channel is to count as well
    else:
        second[:, 1] *= 1e3 if kind == "Conv" else 30
    weights = {"first": first, "second": second, "bias": np.full(4, 1e-4)}
    nodes = [
        helper.make_node("Cast", ["image"], ["as_float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["as_float"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "first", "bias"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node(kind.split()[0], ["b", "second"], ["c"], "product", pads=[1, 1, 1, 1], **attributes),
        helper.make_node("ReduceMean", ["c"], ["mean"], "mean", axes=[1]),
        helper.make_node("ReduceMean", ["b"], ["other"], "other", axes=[1]),
        helper.make_node("Add", ["mean", "other"], ["map"], "both"),
    ]
    graph = helper.make_graph(
        nodes, "uneven", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SIZE])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 1, *SIZE[:2]])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_nothing_changes(kind, tmp_path):
    model = load_named(uneven_graph(tmp_path / "fp32.onnx", kind))
    whole, _ = observe(model, ["planes", "b"], IMAGES, IMAGES[:0])
    made = even(model, ["conv1", "product"], whole)
    assert {old for old, _ in made.values()} == {"planes", "b"}
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "even.onnx")
    before, after = OnnxRuntimeMaps(tmp_path / "fp32.onnx"), OnnxRuntimeMaps(tmp_path / "even.onnx")
    assert after(IMAGES[0]) == pytest.approx(before(IMAGES[0]), rel=1e-4, abs=1e-4 * float(np.ptp(before(IMAGES[0]))))
    other = next(node for node in model.graph.node if node.name == "other")
    assert other.input[0] == "b"  # reads the tensor as it was


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_channel_is_rounded_to_steps_of_its_own(kind, tmp_path, monkeypatch):
    graph = uneven_graph(tmp_path / "fp32.onnx", kind)
    expected = OnnxRuntimeMaps(graph)(IMAGES[0])

    def error() -> float:
        Int8Graphs(graph, IMAGES).write(tmp_path / "int8.onnx", {"conv1": "fp32"}, "minmax")
        with OpenVinoMaps(tmp_path / "int8.onnx", SIZE, "int8") as run:
            return float(np.std(run(IMAGES[0]) - expected) / np.std(expected))

    alike = error()
    monkeypatch.setattr("export.int8.even", lambda *_: {})
    assert alike < 0.5 * error()


def test_openvino_needs_no_layer_of_its_own_for_it(tmp_path):
    Int8Graphs(uneven_graph(tmp_path / "fp32.onnx", "Conv"), IMAGES).write(tmp_path / "int8.onnx", {}, "minmax")
    compiled = compile_model(tmp_path / "int8.onnx", (1, *SIZE), {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ordered_ops()]
    assert kinds.count("Convolution") == 2 and "Eltwise" not in kinds and kinds.count("Subgraph") + kinds.count("FakeQuantize") <= 3


def test_defects_widen_ranges_and_good_images_give_the_means(tmp_path):
    model = load_named(uneven_graph(tmp_path / "fp32.onnx", "Conv"))
    good, bad = np.full((2, *SIZE), 100, np.uint8), np.full((1, *SIZE), 100, np.uint8)
    bad[0, 0, 0], bad[0, 8:20, 8:20, 0] = 255, 180  # a single bright pixel, and a bright field
    whole, cut = observe(model, ["planes"], good, bad)
    assert whole["planes"].highest.tolist() == [255, 255]
    assert 180 <= cut["planes"].highest[0] < 255 and 100 <= cut["planes"].highest[1] < 255
    assert whole["planes"].mean.tolist() == cut["planes"].mean.tolist() == [100, 100]
    assert whole["planes"].lowest.tolist() == [100, 100]


def test_an_idle_channel_keeps_room_for_what_a_defect_may_do():
    by = divisors(np.array([1.0, 0.01, 0.0], np.float32), np.ones(3, np.float32))
    assert by == pytest.approx([1, 0.01**EVENNESS, 0.001**EVENNESS])
    held = Held(np.array([-1, 0, 0], np.float32), np.array([0.5, 0.01, 0], np.float32), np.zeros(3))
    assert held.divided(by).largest.max() == 1  # so the second may rise to ten times of what it held


def test_limits_are_those_of_each_channel(tmp_path):
    graph = uneven_graph(tmp_path / "fp32.onnx", "Conv")
    graphs = Int8Graphs(graph, IMAGES)
    limits = graphs.limits("minmax", [])
    assert set(limits) == {"planes", "b"} and limits["b"].shape == (4, 1, 1)
    session = onnxruntime.InferenceSession(_with_output(graph, "b"), providers=["CPUExecutionProvider"])
    values = np.concatenate([session.run(["b"], {"image": image[None]})[0] for image in IMAGES])
    assert (values <= limits["b"] * 1.0001).all() and set(graphs.limits("minmax", ["product"])) == {"planes"}


def _with_output(graph: Path, name: str) -> bytes:
    model = onnx.load(graph)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return model.SerializeToString()

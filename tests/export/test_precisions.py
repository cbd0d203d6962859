"""FP16 and INT8 graphs: what TensorRT and OpenVINO need of them, and how they are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edge.engines.openvino_graphs import compile_model, core, runs_bfloat16
from export.channels import activations
from export.fp16 import ROUNDING, half_nodes, products, rounding, write_fp16, write_rounded
from export.int8 import Int8Graphs, load_named, not_negative
from export.maps import OnnxRuntimeMaps, OpenVinoMaps
from export.timing import Stopwatch, shares

needs_bfloat16 = pytest.mark.skipif(not runs_bfloat16(), reason="NO BFLOAT16: this processor does not multiply it")
SIZE = (32, 32, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SIZE), np.uint8)


def small_graph(path: Path, weight: float = 0.05, last: str = "Sub") -> Path:
    """image -> conv -> Relu -> conv -> reconstruction; the map is ``last`` of the input and that."""
    rng = np.random.default_rng(1)
    first = numpy_helper.from_array(rng.normal(0, weight, (4, 1, 3, 3)).astype(np.float32), "first")
    second = numpy_helper.from_array(rng.normal(0, 0.05, (1, 4, 3, 3)).astype(np.float32), "second")
    bias = numpy_helper.from_array(np.full(4, 0.1, np.float32), "bias")
    nodes = [
        helper.make_node("Cast", ["image"], ["as_float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["as_float"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "first", "bias"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second"], ["c"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node(last, ["planes", "c"], ["map"], "residual"),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SIZE])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 1, 32, 32])], [first, second, bias])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def graph(tmp_path) -> Path:
    return small_graph(tmp_path / "fp32.onnx")


@pytest.fixture
def int8(graph, tmp_path) -> onnx.ModelProto:
    Int8Graphs(graph, IMAGES).write(tmp_path / "int8.onnx", {}, "minmax")
    return onnx.load(tmp_path / "int8.onnx")


def test_int8_is_symmetric_and_has_no_quantised_bias(int8):
    constants = {value.name: numpy_helper.to_array(value) for value in int8.graph.initializer}
    pairs = [node for node in int8.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) >= 6
    for node in pairs:
        assert (constants[node.input[1]] > 0).all()
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    sources = {constants[node.input[0]].dtype for node in pairs if node.op_type == "DequantizeLinear"
               and node.input[0] in constants}
    assert sources == {np.dtype(np.int8)}
    assert constants["bias"].dtype == np.float32
    scales = [constants[node.input[1]] for node in pairs if node.op_type == "DequantizeLinear"
              and node.input[0] in constants]
    assert {scale.size for scale in scales} == {4, 1}  # one for each output channel


def test_a_residual_reads_the_image_itself(int8):
    nodes = {node.name: node for node in int8.graph.node}
    assert nodes["residual"].input[0] == "planes"
    assert nodes["conv1"].input[0] != "planes"  # while the quantised convolution does not


def test_all_nodes_kept_is_the_float_graph(graph, tmp_path):
    Int8Graphs(graph, IMAGES).write(tmp_path / "none.onnx", {"conv1": "fp32", "conv2": "fp32"}, "minmax")
    assert np.array_equal(OnnxRuntimeMaps(tmp_path / "none.onnx")(IMAGES[0]), OnnxRuntimeMaps(graph)(IMAGES[0]))


def test_int8_differs_from_float_by_steps_of_its_scale(graph, tmp_path, int8):
    error = np.abs(OnnxRuntimeMaps(tmp_path / "int8.onnx")(IMAGES[0]) - OnnxRuntimeMaps(graph)(IMAGES[0])).max()
    assert 0 < error < 2.0  # of 255 grey levels: one step of the image's scale is 2
    with OpenVinoMaps(tmp_path / "int8.onnx", SIZE, "int8") as run:
        assert np.abs(run(IMAGES[0]) - OnnxRuntimeMaps(tmp_path / "int8.onnx")(IMAGES[0])).max() < 1.0


def test_matrix_products_with_constant_weights_are_quantised_for_each_column(graph, tmp_path):
    model = onnx.load(graph)
    weights = np.random.default_rng(2).normal(0, 0.1, (32, 32)).astype(np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(weights, "weights"),
                                    numpy_helper.from_array(np.ones(1, np.int64), "axis")])
    model.graph.node[-1].output[0] = "difference"
    model.graph.node.extend([helper.make_node("Squeeze", ["difference", "axis"], ["rows"], "rows"),
                             helper.make_node("MatMul", ["rows", "weights"], ["mixed"], "product"),
                             helper.make_node("Unsqueeze", ["mixed", "axis"], ["plane"], "plane"),
                             helper.make_node("MatMul", ["plane", "weights"], ["map"], "enlarge")])
    onnx.save(model, tmp_path / "products.onnx")
    graphs = Int8Graphs(tmp_path / "products.onnx", IMAGES)
    assert graphs.nodes == ["conv1", "conv2", "product"]
    graphs.write(tmp_path / "int8.onnx", {"conv1": "fp32", "conv2": "fp32"}, "minmax")
    constants = {value.name: numpy_helper.to_array(value)
                 for value in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert constants["weights_quantized"].dtype == np.int8 and constants["weights_scale"].shape == (32,)
    expected = OnnxRuntimeMaps(tmp_path / "products.onnx")(IMAGES[0])
    with OpenVinoMaps(tmp_path / "int8.onnx", SIZE, "int8") as run:
        assert 0 < np.abs(run(IMAGES[0]) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "shape", "attributes"), [
    ("Conv", (6, 4, 3, 3), {"pads": [1] * 4}), ("Conv", (4, 1, 3, 3), {"pads": [1] * 4, "group": 4}),
    ("ConvTranspose", (4, 3, 4, 4), {"strides": [2, 2], "pads": [1] * 4}),
    ("ConvTranspose", (4, 3, 4, 4), {"strides": [2, 2], "pads": [1] * 4, "group": 2}),
])
def test_rounded_weights_shift_no_channel(kind, shape, attributes, graph, tmp_path, monkeypatch):
    model = onnx.load(graph)
    weights = np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
    weights[..., 0, 0] *= 30  # so that all others are rounded much
    model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    del model.graph.node[4:], model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.node.append(helper.make_node(kind, ["b", "weights"], ["map"], "last", **attributes))
    onnx.save(model, tmp_path / "last.onnx")

    def shift() -> float:
        Int8Graphs(tmp_path / "last.onnx", IMAGES).write(tmp_path / "int8.onnx", {"conv1": "fp32"}, "minmax")
        maps = [onnxruntime.InferenceSession(tmp_path / name).run(None, {"image": IMAGES})[0]
                for name in ("int8.onnx", "last.onnx")]
        return float(np.abs((maps[0] - maps[1])[:, :, 2:-2, 2:-2].mean((0, 2, 3))).max())

    corrected = shift()
    monkeypatch.setattr("export.int8.correct_biases", lambda *_: None)
    assert corrected < 0.2 * shift()


def test_tensors_that_are_never_negative_are_found():
    nodes = [
        ("Cast", ["image"], {"to": TensorProto.FLOAT}), ("Sub", ["Cast", "half"], {}), ("Mul", ["Sub", "Sub"], {}),
        ("Mul", ["Sub", "half"], {}), ("Relu", ["Sub"], {}), ("MaxPool", ["Relu"], {"kernel_shape": [2, 2]}),
        ("MaxPool", ["Sub"], {"kernel_shape": [2, 2]}),
        ("Concat", ["Relu", "Cast"], {"axis": 1}), ("Concat", ["Relu", "Sub"], {"axis": 1}), ("Clip", ["Sub", "half"],
                                                                                              {}),
        ("Clip", ["Sub", "minus"], {}), ("Pow", ["Sub", "two"], {}), ("Pow", ["Sub", "half"], {}),
        ("Div", ["Relu", "half"], {}),
        ("Add", ["Relu", "minus"], {}), ("Max", ["Sub", "half"], {}), ("Pad", ["Relu", "pads", "minus"], {}),
        ("Pad", ["Relu", "pads"], {}),
        ("Resize", ["Relu", "", "half"], {"mode": "linear"}), ("Resize", ["Relu", "", "half"], {"mode": "cubic"}),
        ("LeakyRelu", ["Sub"], {}), ("Sqrt", ["Sub"], {}), ("MatMul", ["Relu", "half"], {}),
        ("MatMul", ["Relu", "minus"], {}),
    ]
    seen: dict[str, int] = {}
    made = []
    for kind, inputs, attributes in nodes:
        seen[kind] = seen.get(kind, 0) + 1
        made.append(helper.make_node(kind, inputs, [kind if seen[kind] == 1 else f"{kind} {seen[kind]}"], **attributes))
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in (("half", 0.5), ("minus", -1),
                                                                                      ("two", 2))]
    graph = helper.make_graph(made, "signs", [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 1, 4, 4])],
                              [], [*constants, numpy_helper.from_array(np.ones(8, np.int64), "pads")])
    assert not_negative(helper.make_model(graph)) == {
        "image", "half", "two", "pads", "Cast", "Mul", "Relu", "MaxPool", "Concat", "Clip", "Pow", "Div", "Max",
        "Pad 2", "Resize", "Sqrt",
        "MatMul"}


def test_openvino_gives_a_tensor_that_is_never_negative_all_256_levels(graph, tmp_path):
    model = onnx.load(graph)
    del model.graph.initializer[:], model.graph.node[2:]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one"))
    model.graph.node.append(helper.make_node("Conv", ["planes", "one"], ["map"], "copy"))
    onnx.save(model, tmp_path / "copy.onnx")
    Int8Graphs(tmp_path / "copy.onnx", IMAGES).write(tmp_path / "int8.onnx", {}, "minmax")
    image = IMAGES[0, :, :, 0].astype(np.float32)
    assert np.abs(OnnxRuntimeMaps(tmp_path / "int8.onnx")(IMAGES[0]) - image).max() > 0.95
    with OpenVinoMaps(tmp_path / "int8.onnx", SIZE, "int8") as run:
        assert np.abs(run(IMAGES[0]) - image).max() < 0.55


def test_ranges_come_from_the_images(graph):
    graphs = Int8Graphs(graph, IMAGES)
    values = activations(load_named(graph), ["b"])
    largest = max(float(values(image)["b"].max()) for image in IMAGES)
    assert float(graphs.limits("minmax", [])["b"].max()) == pytest.approx(largest)
    assert float(graphs.limits("percentile", [])["b"].max()) <= largest
    assert graphs.limits("minmax", ["conv2"]) == {}  # the image loses nothing


def test_half_tensors_are_rounded_as_numpy_rounds_them(graph, tmp_path):
    model = load_named(graph)
    write_rounded(model, tmp_path / "rounded.onnx", ["conv2"])
    with OpenVinoMaps(tmp_path / "rounded.onnx", SIZE, "fp32") as run:
        got = run(IMAGES[0])
    weights = {value.name: torch.from_numpy(numpy_helper.to_array(value).copy()) for value in model.graph.initializer}
    image = torch.from_numpy(IMAGES[:1].astype(np.float32)).permute(0, 3, 1, 2)
    first = torch.nn.functional.conv2d(image, weights["first"].half().float(), weights["bias"].half().float(),
                                       padding=1)
    hidden = torch.relu(first.half().float())
    expected = image - torch.nn.functional.conv2d(hidden, weights["second"], padding=1)
    exact = image - torch.nn.functional.conv2d(
        torch.relu(torch.nn.functional.conv2d(image, weights["first"], weights["bias"], padding=1)), weights["second"],
        padding=1)
    assert np.abs(got - expected[0, 0].numpy()).max() < 1e-4 < float((exact - expected).abs().max())


def test_rounding_in_float32_is_numpys_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    edges = [0, 65504, 65519.99, 65520, -65520, 1e9, np.inf, 2**-14, 2**-24, 2**-25, -(2**-25), 1.5 * 2**-24, np.nan]
    values = np.concatenate([rng.normal(size=10**5) * 10 ** rng.uniform(-9, 6, 10**5), edges]).astype(np.float32)[None]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None]) for name in ("given", "rounded")]
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in ROUNDING.items()]
    graph = helper.make_graph(rounding("given", "rounded"), "rounding", tensors[:1], tensors[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
              tmp_path / "rounding.onnx")
    model = core().compile_model(str(tmp_path / "rounding.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with np.errstate(over="ignore"):
        assert np.array_equal(model(values)[0], values.astype(np.float16).astype(np.float32), equal_nan=True)


def test_an_overflow_that_a_processors_float16_hides_is_seen(tmp_path):
    graph = small_graph(tmp_path / "fp32.onnx", weight=2000)
    model = load_named(graph)
    write_rounded(model, tmp_path / "rounded.onnx", [])
    write_fp16(model, tmp_path / "fp16.onnx", [])
    with OpenVinoMaps(tmp_path / "rounded.onnx", SIZE, "fp32") as run:
        assert not np.isfinite(run(IMAGES[0])).all()
    with OpenVinoMaps(tmp_path / "fp16.onnx", SIZE, "fp16") as run:
        assert np.isfinite(run(IMAGES[0])).all()  # so it cannot be measured there


def test_the_fp16_graph_is_the_one_that_is_measured(graph, tmp_path):
    model = load_named(graph)
    million = numpy_helper.from_array(np.float32(1e6), "million")
    model.graph.initializer.append(million)
    model.graph.node[-1].output[0] = "difference"
    # "large" is beyond the range of float16, and stays in float32
    model.graph.node.extend([helper.make_node("Mul", ["difference", "million"], ["large"], "large"),
                             helper.make_node("Div", ["large", "million"], ["map"], "back")])
    for keep in ([], ["conv2"]):
        write_rounded(model, tmp_path / "rounded.onnx", keep)
        write_fp16(model, tmp_path / "fp16.onnx", keep)
        onnx.checker.check_model(onnx.load(tmp_path / "fp16.onnx"), full_check=True)
        with OpenVinoMaps(tmp_path / "rounded.onnx", SIZE, "fp32") as run:
            measured = run(IMAGES[0])
        shipped = OnnxRuntimeMaps(tmp_path / "fp16.onnx")(IMAGES[0])
        assert np.isfinite(shipped).all() and np.abs(shipped - measured).max() < 0.02 * np.abs(measured).max()
        kinds = {value.name: value.data_type for value in onnx.load(tmp_path / "fp16.onnx").graph.initializer}
        assert kinds["million"] == TensorProto.FLOAT and kinds["first_half"] == TensorProto.FLOAT16
        assert "first" not in kinds


def test_a_float_node_does_not_read_the_int8_weights_of_another(graph, tmp_path):
    model = onnx.load(graph)
    model.graph.node.insert(3, helper.make_node("Conv", ["planes", "first", "bias"], ["twin"], "conv3",
                                                pads=[1, 1, 1, 1]))
    model.graph.node.insert(4, helper.make_node("Add", ["a", "twin"], ["both"], "both"))
    model.graph.node[5].input[0] = "both"
    onnx.save(model, tmp_path / "twin.onnx")
    Int8Graphs(tmp_path / "twin.onnx", IMAGES).write(tmp_path / "int8.onnx", {"conv3": "fp32"}, "minmax")
    written = onnx.load(tmp_path / "int8.onnx")
    constants = {value.name: numpy_helper.to_array(value) for value in written.graph.initializer}
    kept = next(node for node in written.graph.node if node.name == "conv3")
    assert kept.input[0] == "planes" and constants[kept.input[1]].dtype == np.float32


def test_an_old_graph_is_brought_to_an_opset_with_scales_for_each_channel(graph, tmp_path):
    model = onnx.load(graph)
    model.opset_import[0].version, model.ir_version = 11, 6
    onnx.save(model, tmp_path / "old.onnx")
    Int8Graphs(tmp_path / "old.onnx", IMAGES).write(tmp_path / "int8.onnx", {}, "minmax")
    with OpenVinoMaps(tmp_path / "int8.onnx", SIZE, "int8") as run:
        assert np.abs(run(IMAGES[0]) - OnnxRuntimeMaps(graph)(IMAGES[0])).max() < 3


def test_what_makes_the_map_stays_in_float32(graph):
    model = load_named(graph)
    assert [node.name for node in half_nodes(model, ())] == ["conv1", "relu", "conv2"]
    # and so does a node that passes a float32 result on
    assert [node.name for node in half_nodes(model, ["conv1"])] == ["conv2"]
    assert products(model) == ["conv1", "conv2"]
    model.graph.node[-1].output[0] = "small"
    model.graph.initializer.append(numpy_helper.from_array(np.eye(32, dtype=np.float32), "columns"))
    model.graph.node.append(helper.make_node("MatMul", ["small", "columns"], ["map"], "enlarge"))
    assert products(model) == ["conv1", "conv2"]
    assert [node.name for node in half_nodes(model, ())] == ["conv1", "relu", "conv2"]


@needs_bfloat16
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_a_node_in_bfloat16_is_the_only_one(kind, graph, tmp_path):
    model = onnx.load(graph)
    model.graph.node[2].op_type = kind
    if kind == "ConvTranspose":
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(
            numpy_helper.to_array(model.graph.initializer[0]).transpose(1, 0, 2, 3).copy(), "first"))
    onnx.save(model, tmp_path / "fp32.onnx")
    graphs = Int8Graphs(tmp_path / "fp32.onnx", IMAGES)
    graphs.write(tmp_path / "half.onnx", {"conv1": "bf16", "conv2": "fp32"}, "minmax")
    compiled = compile_model(tmp_path / "half.onnx", (1, *SIZE), {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [(op.friendly_name, op.get_rt_info()) for op in compiled.get_runtime_model().get_ordered_ops()]
    layers = {name: info["runtimePrecision"].astype(str) for name, info in infos
              if "onvolution" in info["layerType"].astype(str)}
    assert layers.pop("conv1_bfloat16/product") == "bf16" and list(layers.values()) == ["f32"]
    reference = OnnxRuntimeMaps(tmp_path / "fp32.onnx")(IMAGES[0])
    with OpenVinoMaps(tmp_path / "half.onnx", SIZE, "int8") as run, OpenVinoMaps(tmp_path / "fp32.onnx", SIZE,
                                                                                 "bf16") as rough:
        own, whole = np.abs(run(IMAGES[0]) - reference).max(), np.abs(rough(IMAGES[0]) - reference).max()
    assert 0 < own < 2 * whole


@needs_bfloat16
def test_a_bias_that_cancels_a_large_sum_is_not_rounded_with_it(graph, tmp_path):
    model = onnx.load(graph)
    constants = {value.name: value for value in model.graph.initializer}
    weights = np.full((4, 1, 3, 3), 1.0, np.float32)  # sums of up to 2,295, of which bfloat16 keeps multiples of 16
    constants["first"].CopyFrom(numpy_helper.from_array(weights, "first"))
    constants["bias"].CopyFrom(numpy_helper.from_array(np.full(4, -2000.7, np.float32), "bias"))
    constants["second"].CopyFrom(numpy_helper.from_array(np.where(np.arange(9) == 4, 0.25,
                                                                  0).reshape(1, 1, 3,
                                                                             3).repeat(4, 1) .astype(np.float32),
                                                         "second"))
    onnx.save(model, tmp_path / "fp32.onnx")
    bright = np.random.default_rng(3).integers(221, 224, (4, *SIZE), np.uint8)
    graphs = Int8Graphs(tmp_path / "fp32.onnx", bright)
    graphs.write(tmp_path / "half.onnx", {"conv1": "bf16", "conv2": "fp32"}, "minmax")
    with OpenVinoMaps(tmp_path / "half.onnx", SIZE, "int8") as run, OpenVinoMaps(tmp_path / "fp32.onnx", SIZE,
                                                                                 "fp32") as exact:
        differences = np.abs(run(bright[0]) - exact(bright[0]))
    assert differences.max() < 0.1


def test_without_bfloat16_such_a_node_is_in_float32(graph, tmp_path, monkeypatch):
    Int8Graphs(graph, IMAGES).write(tmp_path / "half.onnx", {"conv1": "bf16", "conv2": "fp32"}, "minmax")
    monkeypatch.setattr("edge.engines.openvino_graphs.runs_bfloat16", lambda: False)
    with OpenVinoMaps(tmp_path / "half.onnx", SIZE, "int8") as run:
        assert run(IMAGES[0]) == pytest.approx(OnnxRuntimeMaps(tmp_path / "half.onnx")(IMAGES[0]), abs=1e-3)


def test_products_are_timed_by_their_names(graph, tmp_path):
    Int8Graphs(graph, IMAGES).write(tmp_path / "mixed.onnx", {"conv1": "bf16"}, "minmax")
    for path in (graph, tmp_path / "mixed.onnx"):
        found = shares(path, SIZE, ["conv1", "conv2"], IMAGES[0])
        assert set(found) == {"conv1", "conv2"} and min(found.values()) > 0 and sum(found.values()) == pytest.approx(1)
        assert -0.9 < Stopwatch(graph, SIZE, IMAGES[0]).longer(path) < 20

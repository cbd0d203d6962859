"""Channel equalisation: the same results in float32, and finer ones in INT8."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.engines.openvino_graphs import compile_model
from export.channels import EVENNESS, Held, divisors, even, observe, scaled_images
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
    """image -> conv to four channels, of which the second is a thousandth as large as the first -> Relu -> the product
    -> their mean.
    """
    rng = np.random.default_rng(1)
    shape, attributes = KINDS[kind]
    first = rng.normal(0, 0.05, (4, 2, 3, 3)) * np.array([1, 1e-3, 0.1, 1]).reshape(4, 1, 1, 1)
    second = rng.normal(0, 0.05, shape)
    if "of single" in kind or kind.startswith("ConvTranspose"):
        second *= np.array([1, 1e3, 1, 1]).reshape(4, 1, 1, 1)  # so that the small channel counts too
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
    assert {new.source for new in made.values()} == {"planes", "b"}
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


def image_graph(path: Path, step: float, black: float, patches: bool = False) -> Path:
    """image -> step * image + black -> conv, with a bias -> map; patches: of quarters of the image, side by side in the
    batch.
    """
    rng = np.random.default_rng(2)
    weights = {"step": np.float32(step), "black": np.full((1, 2, 1, 1), black),
               "weights": rng.normal(0, 0.2, (1, 2, 3, 3)), "bias": np.ones(1),
               "six": np.array([1, 2, 2, 12, 2, 12]), "four": np.array([4, 2, 12, 12]), "one": np.array([1, 1, 24, 24])}
    nodes = [
        helper.make_node("Cast", ["image"], ["as_float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["as_float"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "step"], ["times"], "times"),
        helper.make_node("Add", ["times", "black"], ["plus"], "plus"),
    ]
    if patches:
        nodes += [helper.make_node("Reshape", ["plus", "six"], ["apart"], "apart"),
                  helper.make_node("Transpose", ["apart"], ["ordered"], "ordered", perm=[0, 2, 4, 1, 3, 5]),
                  helper.make_node("Reshape", ["ordered", "four"], ["scaled"], "scaled")]
    nodes += [helper.make_node("Conv", [nodes[-1].output[0], "weights", "bias"], ["c"], "conv", pads=[1, 1, 1, 1]),
              helper.make_node("Reshape", ["c", "one"], ["map"], "map")]
    graph = helper.make_graph(
        nodes, "scaled", [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *SIZE])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 1, *SIZE[:2]])],
        [numpy_helper.from_array(value.astype(np.int64 if name in ("six", "four", "one") else np.float32), name)
         for name, value in ((name, np.asarray(value)) for name, value in weights.items())])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize(("step", "black"), [(1 / 255, -0.5), (1 / 127.5, -1), (1 / 128, -127 / 128), (1 / 255, 0)])
def test_an_image_keeps_a_step_for_each_grey_level(step, black, patches, tmp_path):
    graph = image_graph(tmp_path / "fp32.onnx", step, black, patches)
    model, rng = load_named(graph), np.random.default_rng(3)
    found = scaled_images(model, IMAGES[0])
    assert list(found) == ["scaled" if patches else "plus"]
    levels = rng.integers(0, 255, SIZE, np.uint8)  # without the brightest one, which is cut off where 127 is zero
    whole, _ = observe(model, list(found), levels[None], levels[None][:0])
    made = even(model, ["conv"], whole, scaled=found)
    new, = made
    values = onnxruntime.InferenceSession(_with_outputs(model, new)).run([new], {"image": levels[None]})[0]
    scale = float(made[new].held.largest.max()) / 127
    scale *= 1 if black else 127.5 / 255  # OpenVINO's step where nothing is negative
    rounded = np.clip(np.rint(values / scale), -128 if black else 0, 127 if black else 255)
    assert np.abs(rounded * scale - values).max() < 1e-3 * scale
    onnx.save(model, tmp_path / "even.onnx")
    before, after = OnnxRuntimeMaps(graph)(levels), OnnxRuntimeMaps(tmp_path / "even.onnx")(levels)
    sides = np.zeros(SIZE[:2], bool)  # of images, where paddings are half a level off
    side = 12 if patches else 24
    sides.reshape(-1, side, side)[:, [0, -1]] = sides.reshape(-1, side, side)[:, :, [0, -1]] = True
    assert after[~sides] == pytest.approx(before[~sides], abs=1e-5)
    weights = numpy_helper.to_array(load_named(graph).graph.initializer[2])
    assert np.abs(after - before).max() < step * float(np.abs(weights).sum())


def test_an_image_whose_zero_is_far_from_the_middle_is_rounded_as_others_are(tmp_path):
    model = load_named(image_graph(tmp_path / "fp32.onnx", 1 / 58, -1))
    found = scaled_images(model, IMAGES[0])
    whole, _ = observe(model, list(found), IMAGES, IMAGES[:0])
    assert not even(model, ["conv"], whole, scaled=found)["plus_even"].exact


def test_an_image_is_rounded_as_others_are_where_no_bias_can_make_up_for_its_shift(tmp_path):
    model = load_named(image_graph(tmp_path / "fp32.onnx", 1 / 255, -0.5))
    found = scaled_images(model, IMAGES[0])
    whole, _ = observe(model, list(found), IMAGES, IMAGES[:0])
    model.graph.node.insert(0, helper.make_node("Identity", ["bias"], ["worked_out"], "worked_out"))
    next(node for node in model.graph.node if node.name == "conv").input[2] = "worked_out"
    assert not even(model, ["conv"], whole, scaled=found)["plus_even"].exact


def test_what_is_more_than_an_image_scaled_is_none(tmp_path):
    model = load_named(uneven_graph(tmp_path / "fp32.onnx", "Conv"))
    assert list(scaled_images(model, IMAGES[0])) == ["planes"]


def test_openvino_needs_no_layer_of_its_own_for_it(tmp_path):
    Int8Graphs(uneven_graph(tmp_path / "fp32.onnx", "Conv"), IMAGES).write(tmp_path / "int8.onnx", {}, "minmax")
    compiled = compile_model(tmp_path / "int8.onnx", (1, *SIZE), {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ordered_ops()]
    assert kinds.count("Convolution") == 2 and "Eltwise" not in kinds
    assert kinds.count("Subgraph") + kinds.count("FakeQuantize") <= 3


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
    assert held.divided(by).largest.max() == 1  # so the second may rise to ten times its range


def test_limits_are_those_of_each_channel(tmp_path):
    graph = uneven_graph(tmp_path / "fp32.onnx", "Conv")
    graphs = Int8Graphs(graph, IMAGES)
    limits = graphs.limits("minmax", [])
    assert set(limits) == {"b"} and limits["b"].shape == (4, 1, 1)  # an image's steps clip nothing
    session = onnxruntime.InferenceSession(_with_output(graph, "b"), providers=["CPUExecutionProvider"])
    values = np.concatenate([session.run(["b"], {"image": image[None]})[0] for image in IMAGES])
    assert (values <= limits["b"] * 1.0001).all() and graphs.limits("minmax", ["product"]) == {}


def _with_output(graph: Path, name: str) -> bytes:
    return _with_outputs(onnx.load(graph), name)


def _with_outputs(model: onnx.ModelProto, name: str) -> bytes:
    model = copy.deepcopy(model)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return model.SerializeToString()

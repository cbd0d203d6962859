"""Golden parts: an engine that does not reproduce them never goes live."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge.base.errors import BundleError
from edge.bundle.bundle import SEAL, load_bundle
from edge.images.files import write_image
from edge.inspection.golden import golden_rule, golden_scores, judge_golden, read_golden
from edge.inspection.inspector import Inspector


def seal_again(bundle) -> None:
    """Write new hashes for all files in model/, as somebody would who wants a changed bundle to run."""
    path = bundle / "model" / "model.toml"
    body = path.read_text().rpartition(SEAL)[0]
    for file in (bundle / "model").rglob("*"):
        name = file.relative_to(bundle / "model").as_posix()
        if file.is_file() and file != path:
            body = re.sub(rf'"{re.escape(name)}" = "\w+"',
                          f'"{name}" = "{hashlib.sha256(file.read_bytes()).hexdigest()}"', body)
    path.write_text(f'{body}{SEAL}sha256 = "{hashlib.sha256(body.encode()).hexdigest()}"\n')


def spoil(bundle) -> None:
    """Multiply one weight tensor by 8."""
    graph = bundle / "model" / "fp32.onnx"
    model = onnx.load(graph)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array(8 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, graph)
    seal_again(bundle)


def middle(bundle) -> float:
    """A threshold among the golden parts' scores."""
    loaded = load_bundle(bundle)
    rule = golden_rule(loaded)
    return float(np.median([rule.score(rule.grey(values)) for values in read_golden(loaded)[2]]))


def check(bundle, threshold=0.5) -> str | None:
    with Inspector(load_bundle(bundle), threads=1) as inspector:
        return judge_golden(inspector.bundle, golden_scores(inspector), threshold)


def test_a_whole_bundle_reproduces_its_golden_parts(bundle):
    parts, frames, maps = read_golden(load_bundle(bundle))
    assert 5 <= len(parts) <= 8 and {part.kind for part in parts} == {"good", "artificial defect",
                                                                      "faint artificial defect"}
    assert all(frame.shape == (64, 64, 1) for frame in frames) and maps.shape == (len(parts), 64, 64)
    assert check(bundle, middle(bundle)) is None


def test_a_spoilt_graph_with_new_hashes_is_named_by_the_part_that_shows_it(bundle):
    spoil(bundle)
    with pytest.raises(BundleError,
                       match=r"golden part \d\d\.png \(.*\) of .* has another map in fp32 on openvino.*difference of"):
        check(bundle)


def test_a_map_that_is_not_finite_is_named(bundle):
    graph = bundle / "model" / "fp32.onnx"
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), np.nan), tensor.name))
    onnx.save(model, graph)
    seal_again(bundle)
    with pytest.raises(BundleError, match=r"golden part 01\.png.*not finite"):
        check(bundle)


def test_a_threshold_that_rejects_the_most_ordinary_good_part_does_not_go_live(bundle):
    with pytest.raises(BundleError, match=r"golden part 01\.png \(good\) of .* would be rejected.*lineside calibrate"):
        check(bundle, threshold=1e-6)


def test_a_threshold_that_passes_every_golden_defect_is_told(bundle):
    assert "passes every golden defect" in check(bundle, threshold=1e6)


def test_without_golden_parts_nothing_goes_live(bundle):
    (bundle / "model" / "golden" / "parts.json").write_text("[]\n")
    seal_again(bundle)
    with pytest.raises(BundleError, match=r"no usable golden parts.*Export the bundle again"):
        check(bundle)


def test_the_rule_for_golden_parts_has_the_camera_s_frame_size(bundle):
    mask = np.zeros((96, 96), np.uint8)
    mask[:, :48] = 255
    write_image(bundle / "ignore.png", mask)
    path = bundle / "decision.toml"
    path.write_text(path.read_text().replace('# ignore_mask = "ignore.png"', 'ignore_mask = "ignore.png"'))
    region = golden_rule(load_bundle(bundle)).region
    assert region.shape == (64, 64) and not region[:, :31].any() and region[:, 33:].all()


def test_json_of_golden_parts_names_each_file(bundle):
    listed = json.loads((bundle / "model" / "golden" / "parts.json").read_text())
    files = sorted(path.name for path in (bundle / "model" / "golden").glob("*.png"))
    assert [part["file"] for part in listed] == files == [f"{i:02d}.png" for i in range(1, len(files) + 1)]


def test_a_region_outside_the_fitted_size_is_judged_where_it_lies(bundle):
    path = bundle / "decision.toml"
    # of frames up to twice the fitted 96
    path.write_text(path.read_text().replace("# roi = [0, 0, 640, 480]", "roi = [10, 10, 120, 120]"))
    region = golden_rule(load_bundle(bundle)).region
    assert region.any() and not region.all()
    assert "passes every golden defect" in check(bundle, 1e6)


def test_a_graph_with_another_map_size_is_named(bundle):
    graph = bundle / "model" / "fp32.onnx"
    model = onnx.load(graph)
    last = next(node for node in model.graph.node if "map" in node.output)
    last.output[list(last.output).index("map")] = "whole"
    for node in model.graph.node:
        node.input[:] = ["whole" if name == "map" else name for name in node.input]
    model.graph.node.append(onnx.helper.make_node("MaxPool", ["whole"], ["map"], kernel_shape=[2, 2], strides=[2, 2]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("map", onnx.TensorProto.FLOAT, ["N", 1, 32, 32]))
    onnx.save(model, graph)
    seal_again(bundle)
    with pytest.raises(BundleError, match=r"golden part 01\.png.*another size"):
        check(bundle)

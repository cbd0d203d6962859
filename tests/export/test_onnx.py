"""The exported graph: the bundle's contract, and parity with torch before anything is written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from detectors.fit import Settings, network_arguments
from detectors.registry import detector_class
from edge.base.errors import BundleError
from edge.bundle.bundle import load_bundle
from export.onnx import (
    check_parity,
    choose_golden,
    export_run,
    fold_batch_norms,
    openvino_maps,
    parity_images,
    read_run,
    torch_maps,
    without_plain_transposes,
    write_graph,
)


def test_the_graph_has_the_contracts_inputs_and_outputs(exported):
    graph = onnx.load(exported / "model" / "fp32.onnx")
    onnx.checker.check_model(graph, full_check=True)
    (image,), (anomaly_map,) = graph.graph.input, graph.graph.output

    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8 and shape(image)[1:] == [64, 64, 1]
    assert anomaly_map.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and shape(anomaly_map)[1:] == [1, 64, 64]
    assert isinstance(shape(image)[0], str) and shape(image)[0] == shape(anomaly_map)[0]
    assert {opset.domain for opset in graph.opset_import} == {""} and graph.opset_import[0].version == 18


def test_the_graph_names_no_file_of_this_machine(exported):
    assert b".py" not in (exported / "model" / "fp32.onnx").read_bytes()


def test_what_the_image_has_no_part_in_is_worked_out_beforehand(tmp_path):
    cls = detector_class("ndp-net")
    size, arguments = network_arguments(cls, Settings("ndp-net", size=64, width=4))
    network = cls(**{**arguments, "even_light": False}).eval()
    write_graph(network, (size, size, 3), tmp_path / "fp32.onnx")
    graph = onnx.load(tmp_path / "fp32.onnx").graph
    seen = {"image"}
    for node in graph.node:
        assert not seen.isdisjoint(node.input), node.op_type
        seen.update(node.output)
    constants = {value.name for value in graph.initializer}
    assert all(node.input[1] in constants for node in graph.node if node.op_type in ("Conv", "ConvTranspose"))
    assert constants <= {name for node in graph.node for name in node.input}


def test_transposed_convolutions_that_change_no_size_become_convolutions():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.ConvTranspose2d(3, 4, 4, 2, 1), torch.nn.ReLU(),
                                 torch.nn.ConvTranspose2d(4, 2, 3, 1, 1), torch.nn.ConvTranspose2d(2, 2, 4))
    image = torch.rand(2, 3, 5, 6)
    with torch.no_grad():
        expected = layers(image)
        torch.testing.assert_close(without_plain_transposes(layers)(image), expected)
    assert [type(layer).__name__ for layer in layers] == ["ConvTranspose2d", "ReLU", "Conv2d", "ConvTranspose2d"]


@pytest.mark.parametrize("detector", ["fim-net", "ndp-net"])
def test_batch_norms_become_part_of_the_convolutions_before_them(detector):
    cls = detector_class(detector)
    size, arguments = network_arguments(cls, Settings(detector, size=64, width=4))
    torch.manual_seed(0)
    network = cls(**arguments).eval()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        torch.nn.init.uniform_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    folded = fold_batch_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    image = torch.rand(1, cls.channels, size, size)
    with torch.inference_mode():
        assert folded(image).numpy() == pytest.approx(network(image).numpy(), rel=1e-3, abs=1e-5)


def test_openvino_agrees_with_torch_on_real_images(fitted_run, exported):
    record, network = read_run(fitted_run)
    images = parity_images(record, network)
    assert len(images) == 2 * len(record.held_out) and images.dtype == np.uint8
    difference = check_parity(torch_maps(network, images), openvino_maps(exported / "model" / "fp32.onnx", images),
                              "OpenVINO")
    assert difference < 1e-4
    assert load_bundle(exported).card.fit["parity"] == pytest.approx(difference, abs=1e-4)


def test_parity_is_a_share_of_the_maps_range():
    expected = np.linspace(2, 4, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    assert check_parity(expected, expected + np.float32(0.001), "OpenVINO") == pytest.approx(0.0005, rel=1e-2)
    with pytest.raises(BundleError, match="on OpenVINO differs from the network"):
        check_parity(expected, expected + np.float32(0.003), "OpenVINO")
    with pytest.raises(BundleError, match="not finite"):
        check_parity(expected, expected * np.nan, "OpenVINO")


def test_a_graph_that_differs_is_not_written(fitted_run, tmp_path, monkeypatch):
    import export.onnx

    monkeypatch.setattr(export.onnx, "openvino_maps", lambda graph, images: openvino_maps(graph, images) + 0.01)
    with pytest.raises(BundleError, match="not written"):
        export_run(fitted_run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_images_that_changed_since_the_fit_are_found(fitted_run, cloth, tmp_path, monkeypatch, lineside):
    import export.onnx

    monkeypatch.setattr(export.onnx, "frame_hash", lambda frame: "another")
    code, _, err = lineside("export", fitted_run, "--out", tmp_path / "bundle")
    assert code == 2 and "has changed since the fit" in err


def test_golden_parts_span_the_scores_and_lie_near_the_highest_good_one():
    scores = [1.0, 9.0, 3.0, 2.9, 2.0, 3.2, 1.5, 0.5, 1.8, 6.0]  # good and defective by turns
    chosen = choose_golden(scores)
    assert [scores[i] for i, kind in chosen.items() if kind == "good"] == [1.0, 1.8, 3.0]
    assert [scores[i] for i, kind in chosen.items() if kind == "artificial defect"] == [9.0, 3.2]
    assert sorted(scores[i] for i, kind in chosen.items() if kind == "faint artificial defect") == [0.5, 2.9, 6.0]
    assert choose_golden([1.0, 2.0]) == {0: "good", 1: "artificial defect"}

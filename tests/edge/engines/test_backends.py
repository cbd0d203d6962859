"""The registry of backends. A new kind is one file and one line: a toy backend inspects, calibrates and is reported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from edge.base.errors import BundleError, EngineError
from edge.bundle.bundle import load_bundle
from edge.bundle.decision import write_threshold
from edge.engines.backends import BACKENDS, all_backends, get_backend, processor_backend
from edge.images.files import list_images, read_image
from edge.inspection.choice import choose, pick_backend
from edge.inspection.golden import golden_scores
from edge.inspection.inspector import Inspector
from edge.tools.doctor import examine


@pytest.fixture
def toy(monkeypatch):
    """The registry's one line."""
    monkeypatch.setitem(BACKENDS, "toy", "tests.toys.engine:Toy")


def test_a_toy_backend_reproduces_the_golden_parts_and_inspects_as_a_line_does(toy, calibrated, cloth):
    frame = read_image(list_images(cloth / "test" / "hole")[0])
    with Inspector(load_bundle(calibrated)) as inspector:
        expected = inspector.inspect(frame, None).score
    with Inspector(load_bundle(calibrated), backend="toy", threads=2, mode="throughput") as inspector:
        inspector.group(inspector.warm_up(), 0.1)
        assert golden_scores(inspector)["good"]
        assert inspector.inspect(frame, None).score == pytest.approx(expected, rel=1e-3)


def test_commands_take_a_toy_backend_with_a_threshold_of_its_own(toy, calibrated, cloth, tmp_path, lineside):
    good = tmp_path / "good"
    good.mkdir()
    for image in list_images(cloth / "test" / "good")[:4]:
        shutil.copy(image, good)
    code, out, err = lineside("calibrate", calibrated, "--good", good, "--false-reject-rate", 0.2, "--backend", "toy",
                              "--json")
    assert code == 0, err
    threshold = json.loads(out)["threshold"]
    image = list_images(cloth / "test" / "hole")[0]
    code, out, err = lineside("inspect", calibrated, image, "--out", tmp_path, "--backend", "toy", "--json")
    assert code == 0 and json.loads(out)[0]["threshold"] == threshold, err
    chosen = choose(load_bundle(calibrated), "auto", "toy")
    assert (chosen.precision, chosen.backend, chosen.threshold) == ("fp32", "toy", threshold)


def test_doctor_reports_what_a_toy_backend_finds(toy, tmp_path):
    assert "toy engine" in {finding.what for finding in examine(tmp_path)}


def test_a_threshold_of_a_backend_that_does_not_exist_is_named(toy, calibrated, monkeypatch):
    bundle = load_bundle(calibrated)
    threshold = bundle.calibrated_threshold("fp32", "openvino").model_copy(update={"backend": "toy"})
    write_threshold(calibrated, threshold, bundle.graph_sha256("fp32"), bundle.decision.rule_sha256(calibrated))
    assert load_bundle(calibrated).threshold("fp32", "toy") is not None
    monkeypatch.delitem(BACKENDS, "toy")
    with pytest.raises(BundleError, match=r"backend' got 'toy', expected one of tensorrt, openvino, onnxruntime"):
        load_bundle(calibrated)


def test_a_backend_without_its_package_says_what_to_install(toy, exported, monkeypatch):
    monkeypatch.setattr("edge.engines.engine.find_spec", lambda name: None)
    bundle = load_bundle(exported)
    for name in BACKENDS:
        with pytest.raises(EngineError, match=f"{name} cannot run here; got no package"):
            pick_backend(bundle, name)
    with pytest.raises(EngineError,
                       match=r"no engine is installed; got neither openvino nor onnxruntime.*pip install openvino"):
        processor_backend()
    assert {finding.what: finding.status for finding in get_backend("openvino").doctor("/")} == {"OpenVINO": "missing"}
    assert {finding.what: finding.status
            for finding in get_backend("onnxruntime").doctor("/")} == {"ONNX Runtime": "improvable"}


def test_auto_takes_the_first_that_is_installed_and_needs_no_plan(exported, monkeypatch):
    bundle = load_bundle(exported)
    assert pick_backend(bundle) == processor_backend() == "openvino"
    monkeypatch.setattr("edge.engines.openvino.OpenVino.installed", lambda self: False)
    assert pick_backend(bundle) == processor_backend() == "onnxruntime"
    monkeypatch.setattr("edge.engines.tensorrt.TensorRt.can_run", lambda self, precision, graph_sha256: precision
                        == "fp32")
    assert pick_backend(bundle) == pick_backend(bundle, precision="auto") == "tensorrt"
    assert pick_backend(bundle, precision="int8") == "onnxruntime"  # not offered: `Bundle.choose` says so


def test_a_registry_name_is_the_name_that_its_class_declares():
    assert [backend.name for backend in all_backends()] == list(BACKENDS)


def test_declarations_load_no_engine():
    code = "import sys; from edge.engines.backends import all_backends; all_backends(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"openvino", "onnxruntime", "tensorrt", "pycuda"}

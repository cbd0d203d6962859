"""The ONNX Runtime engine: the same maps as OpenVINO, thresholds of its own, and errors that name what is missing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge.base.errors import EngineError, InputError
from edge.bundle.bundle import load_bundle
from edge.engines.backends import get_backend
from edge.inspection.choice import pick_backend

SIZE = (64, 64, 1)


def engine_of(bundle, backend, precision="fp32", slots=2, batch=2):
    return get_backend(backend).make_engine(load_bundle(bundle).graph(precision), SIZE, precision=precision, threads=1,
                                            slots=slots, batch=batch)


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_it_gives_the_maps_that_openvino_gives(quantised, precision):
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE), np.uint8)
    maps = {}
    for backend in ("openvino", "onnxruntime"):
        engine = engine_of(quantised[0], backend, precision)
        slot = engine.lease()
        slot.input[:] = images
        slot.start(2)
        maps[backend] = slot.wait(10).copy()
        slot.release()
        engine.close()
    tolerance = 1e-4 if precision == "fp32" else load_bundle(quantised[0]).card.precisions[precision].tolerance
    assert maps["onnxruntime"].shape == (2, 1, 64, 64)
    assert np.abs(maps["onnxruntime"] - maps["openvino"]).max() < max(tolerance, 2e-2) * np.ptp(maps["openvino"])


def test_slots_run_beside_one_another(exported):
    engine = engine_of(exported, "onnxruntime")
    slots = [engine.lease(), engine.lease()]
    for value, slot in enumerate(slots):
        slot.input[:] = 200 * value
        slot.start(1)
    maps = [slot.wait(10) for slot in slots]
    assert maps[0].shape == (1, 1, 64, 64) and not np.array_equal(*maps)
    for slot in slots:
        slot.release()
    engine.close()


def test_an_inference_that_takes_too_long_is_ended(exported):
    engine = engine_of(exported, "onnxruntime", slots=1, batch=64)
    slot = engine.lease()
    slot.start(64)
    with pytest.raises(EngineError, match="did not end in time"):
        slot.wait(1e-6)
    slot.release()
    engine.close()


def test_commands_take_it_with_a_threshold_of_its_own(calibrated, cloth, tmp_path, lineside):
    good = cloth / "test" / "good"
    image = next(good.iterdir())
    code, out, _ = lineside("inspect", calibrated, image, "--out", tmp_path / "out", "--backend", "onnxruntime",
                            "--json")
    assert code == 0 and json.loads(out)[0]["verdict"] is None  # OpenVINO's threshold does not apply
    code, out, err = lineside("calibrate", calibrated, "--good", good, "--false-reject-rate", 0.1, "--backend",
                              "onnxruntime", "--json")
    assert code == 0 and json.loads(out)["backend"] == "onnxruntime", err
    bundle = load_bundle(calibrated)
    both = [bundle.calibrated_threshold("fp32", backend).value for backend in ("openvino", "onnxruntime")]
    assert both[0] == pytest.approx(both[1], rel=1e-3)
    code, out, _ = lineside("evaluate", calibrated, "--data", cloth, "--backend", "onnxruntime", "--json")
    assert code == 0 and json.loads(out)["backend"] == "onnxruntime" and json.loads(out)["threshold"] == both[1]


def test_what_cannot_run_is_refused(exported, tmp_path, lineside):
    with pytest.raises(InputError, match="no such backend"):
        pick_backend(load_bundle(exported), "tensorflow")
    with pytest.raises(EngineError, match=r"CUDAExecutionProvider.*onnxruntime-gpu"):
        engine_of(exported, "onnxruntime-cuda")
    with pytest.raises(EngineError, match="does not run this precision; got 'bf16'"):
        get_backend("onnxruntime").make_engine(load_bundle(exported).graph("bf16"), SIZE, precision="bf16", threads=1,
                                               slots=1, batch=1)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((exported / "model" / "fp32.onnx").read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"cannot load .*broken\.onnx"):
        get_backend("onnxruntime").make_engine(broken, SIZE, precision="fp32", threads=1, slots=1, batch=1)
    with pytest.raises(EngineError, match="takes other images"):
        get_backend("onnxruntime").make_engine(load_bundle(exported).graph("fp32"), (32, 32, 1), precision="fp32",
                                               threads=1, slots=1, batch=1)
    code, _, err = lineside("run", tmp_path / "none.toml", "--backend", "x")
    assert code == 2 and "none.toml" in err


def test_thresholds_of_both_backends_stay_beside_each_other(bundle_of, cloth, lineside):
    good = cloth / "test" / "good"
    code, _, err = lineside("calibrate", bundle_of, "--good", good, "--false-reject-rate", 0.1, "--backend",
                            "onnxruntime")
    assert code == 0, err
    bundle = load_bundle(bundle_of)
    for precision in ("fp32", "fp16", "int8"):
        assert bundle.threshold(precision, "onnxruntime") is not None and bundle.threshold(precision,
                                                                                           "openvino") is not None
    assert bundle.threshold("bf16", "onnxruntime") is None and bundle.choose("auto", "onnxruntime") == "fp32"

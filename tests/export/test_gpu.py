"""On a real GPU: plans built, loaded and compared with OpenVINO, for every detector and precision.

`lineside doctor --gpu-report DIR` runs this file. Without a GPU all of it is skipped, with one reason;
tests/export/test_gpu_over_mocks.py runs a part of it on the mocks, so that it works once there is a GPU.
"""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from detectors.registry import DETECTORS
from edge.base.errors import EngineError
from edge.bundle.bundle import load_bundle
from edge.engines.backends import get_backend
from edge.engines.plans import find_plan, plan_folder
from export.fp16 import write_fp16
from export.int8 import Int8Graphs, load_named
from tests.export.test_tensorrt_engines import graph_of

SOAK = int(os.environ.get("LINESIDE_SOAK", "10000"))  # inferences
# Largest difference from OpenVINO as a share of the map's range. INT8 is rounded in other places.
PARITY = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1}


def why_not() -> str:
    """Why there is no GPU to test on; empty if there is one."""
    from edge.engines.gpu import import_cuda, import_tensorrt

    try:
        import_cuda()
        import_tensorrt()
    except EngineError as error:
        return str(error)
    return ""


REASON = why_not()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=f"no GPU: {REASON}")]


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def graphs(request, tmp_path_factory):
    """The three graphs of a detector, and images."""
    folder = tmp_path_factory.mktemp(request.param)
    graph, pixels = graph_of(request.param, folder)
    Int8Graphs(graph, pixels).write(folder / "int8.onnx", {}, "minmax")
    write_fp16(load_named(graph), folder / "fp16.onnx", [])
    return folder, pixels


def engine_of(graph, size, slots=1, batch=4):
    import tensorrt as trt

    from edge.engines.tensorrt import TensorRtEngine
    from export.tensorrt import build_plan

    return TensorRtEngine(build_plan(trt, graph, (1, batch, batch), workspace_mb=1024), size, slots=slots, batch=batch)


def infer(engine, images):
    slot = engine.lease()
    slot.input[: len(images)] = images
    slot.start(len(images))
    maps = slot.wait(30).copy()
    slot.release()
    return maps


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_maps_are_those_of_openvino(graphs, precision, record_property):
    folder, pixels = graphs
    size = pixels.shape[1:]
    graph = folder / f"{precision}.onnx"
    engine = engine_of(graph, size)
    other = get_backend("openvino").make_engine(graph, size, precision=precision, threads=0, slots=1, batch=1)
    try:
        assert engine.without_graphs is None, engine.without_graphs  # captured as CUDA graphs
        expected = np.concatenate([infer(other, image[None]) for image in pixels])
        got = infer(engine, pixels)
        difference = float(np.abs(got - expected).max() / max(float(np.ptp(expected)), 1e-12))
        record_property("difference", difference)
        assert difference < PARITY[precision]
        for n in (1, 2, 3):
            assert np.abs(infer(engine, pixels[:n]) - expected[:n]).max() < PARITY[precision] * np.ptp(expected)
        times = []
        for _ in range(60):
            start = time.perf_counter()
            infer(engine, pixels[:1])
            times.append(1000 * (time.perf_counter() - start))
        for name, share in (("p50_ms", 50), ("p99_ms", 99)):
            record_property(name, round(float(np.percentile(times[10:], share)), 3))
    finally:
        engine.close()
        other.close()


def test_two_slots_beside_each_other_are_not_slower(graphs, record_property):
    folder, pixels = graphs
    rates = {}
    for slots in (1, 2):
        engine = engine_of(folder / "fp32.onnx", pixels.shape[1:], slots=slots, batch=1)
        leased = [engine.lease() for _ in range(slots)]
        start = time.perf_counter()
        for number in range(100):
            slot = leased[number % slots]
            if number >= slots:
                slot.wait(30)
            slot.start(1)
        for slot in leased:
            slot.wait(30)
            slot.release()
        rates[slots] = 100 / (time.perf_counter() - start)
        engine.close()
    record_property("two_slots_over_one", round(rates[2] / rates[1], 3))
    assert rates[2] > 0.8 * rates[1]


def test_a_long_soak_changes_nothing(exported, record_property):
    import pycuda.driver as cuda

    engine = engine_of(load_bundle(exported).graph("fp32"), (64, 64, 1), slots=2, batch=1)
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 1), np.uint8)
    first = [infer(engine, image[None]) for image in images]
    with engine.current():
        before = cuda.mem_get_info()[0]
    for number in range(SOAK):
        assert np.array_equal(infer(engine, images[number % 8][None]), first[number % 8])
    with engine.current():
        after = cuda.mem_get_info()[0]
    engine.close()
    record_property("inferences", SOAK)
    assert before - after < 16 << 20  # bytes of the GPU's memory


def test_plans_are_kept_and_stale_ones_refused(bundle_of, cloth, tmp_path, monkeypatch, lineside):
    from dataclasses import replace

    from edge.engines.gpu import this_device

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = cloth / "test" / "good"
    code, out, err = lineside("engine", bundle_of, "--good", good, "--batch", "1:1:2", "--layers", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert "fp32" in made["offered"] and all(built["layers"] for built in made["precisions"].values()
                                             if not built["reason"])
    code, out, _ = lineside("engine", bundle_of, "--good", good, "--batch", "1:1:2", "--json")
    assert code == 0 and all(built["cached"] for built in json.loads(out)["precisions"].values())
    for precision in made["offered"]:
        image = next(good.iterdir())
        code, out, err = lineside("inspect", bundle_of, image, "--out", tmp_path / "out", "--precision", precision,
                                  "--json")
        assert code == 0 and json.loads(out)[0]["threshold"] == made["precisions"][precision]["threshold"], err
    graph = load_bundle(bundle_of).graph_sha256("fp32")
    with pytest.raises(EngineError, match="is stale"):
        find_plan(plan_folder(), graph, replace(this_device(), driver="another one"), 1)

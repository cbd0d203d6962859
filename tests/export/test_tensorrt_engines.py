"""TensorRT plans: each detector's graphs, built ahead of time with TensorRT-RTX; the command and a line on the
mocks.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from detectors.registry import DETECTORS, detector_class
from edge.base.errors import InputError
from edge.bundle.bundle import WORTH, load_bundle
from export.fp16 import MULTIPLY, half_nodes, write_fp16
from export.int8 import Int8Graphs, load_named, quantisable
from export.onnx import write_graph
from export.tensorrt import parse_batch
from tests.export.test_precisions import IMAGES, small_graph
from tests.mocks import HERE, environment
from tests.rig import Rig, finish


def build(*graphs: Path, **more: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this machine")
    return subprocess.run([sys.executable, "-m", "tests.export.build_rtx", *map(str, graphs)], capture_output=True,
                          text=True, timeout=280, cwd=HERE.parents[1], env={**os.environ, **more})


def graph_of(detector: str, folder: Path) -> tuple[Path, np.ndarray]:
    """The float32 graph of an untrained network of 128 px, and images."""
    from detectors.backbones import load_backbone
    from detectors.fit import Settings, network_arguments

    cls = detector_class(detector)
    size, arguments = network_arguments(cls, Settings(detector, size=128, width=8))
    backbone = None
    if cls.backbone is not None:
        backbone, _ = load_backbone(cls.backbone, None)
    pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, cls.channels), np.uint8)
    if arguments.get("even_light", False) is None:
        arguments["even_light"] = True
    cls.settle(arguments, pixels, backbone)
    torch.manual_seed(0)
    network = cls(**arguments)
    if backbone is not None:
        network.use_backbone(backbone)
    with torch.no_grad():
        network.eval().finish(pixels)
    write_graph(network, (size, size, cls.channels), folder / "fp32.onnx")
    return folder / "fp32.onnx", pixels


@pytest.mark.parametrize("detector", sorted(DETECTORS))
def test_every_graph_builds_with_tensorrt_rtx_ahead_of_time(detector, tmp_path):
    graph, pixels = graph_of(detector, tmp_path)
    Int8Graphs(graph, pixels).write(tmp_path / "int8.onnx", {}, "minmax")
    model = load_named(graph)
    write_fp16(model, tmp_path / "fp16.onnx", [])
    done = build(*sorted(tmp_path.glob("*.onnx")))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {Path(name).stem: row for name, row in json.loads(done.stdout).items()}
    convolutions = sum(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node)

    def count(precision: str, *kinds: str) -> int:
        return sum(number for kind, number in found[precision]["layers"].items() if kind in kinds)

    for precision in ("fp32", "fp16", "int8"):
        assert found[precision]["bytes"] > 10_000
        assert (found[precision]["input"], found[precision]["output"]) == ("UINT8", "FLOAT")
        products = [f"{kind} {dtype}" for kind in ("CONVOLUTION", "DECONVOLUTION")
                    for dtype in ("FLOAT", "HALF", "INT8")]
        assert count(precision, *products) == convolutions
    assert not [kind for kind in found["fp32"]["layers"] if kind.endswith((" HALF", " INT8"))]
    half = [node.op_type for node in half_nodes(model, ())]
    assert count("fp16", "CONVOLUTION HALF", "DECONVOLUTION HALF") == sum(kind in ("Conv", "ConvTranspose")
                                                                          for kind in half) > 0
    assert not [kind for kind in found["fp16"]["layers"] if kind.endswith(" INT8")]
    for kind in ("SOFTMAX", "NORMALIZATION"):
        assert not count("fp16", f"{kind} HALF")
    pairs = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert count("int8", "DEQUANTIZE FLOAT") == pairs.count("DequantizeLinear") >= 2 * len(quantisable(model)) * 0.5
    assert count("int8", "QUANTIZE INT8") == pairs.count("QuantizeLinear") > 0  # the weights are int8 constants
    assert set(half) & set(MULTIPLY)


def spoilt(kind: str, folder: Path) -> Path:
    """A graph that TensorRT does not accept."""
    graph = small_graph(folder / "fp32.onnx")
    if kind in ("zero-point", "scale", "bias"):
        Int8Graphs(graph, IMAGES).write(folder / "int8.onnx", {}, "minmax")
        model = onnx.load(folder / "int8.onnx")
        pair = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        if kind == "bias":  # as ONNX Runtime writes it unless told otherwise
            convolution = next(node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3)
            model.graph.initializer.extend([numpy_helper.from_array(np.full(4, 3, np.int32), "bias32"),
                                            numpy_helper.from_array(np.full(4, 0.1, np.float32), "bias_scale"),
                                            numpy_helper.from_array(np.zeros(4, np.int32), "bias_zero")])
            model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["bias32", "bias_scale", "bias_zero"],
                                                        ["bias_float"], axis=0))
            convolution.input[2] = "bias_float"
        else:
            name = pair.input[2 if kind == "zero-point" else 1]
            value = next(value for value in model.graph.initializer if value.name == name)
            value.CopyFrom(numpy_helper.from_array(np.asarray(3, np.int8) if kind == "zero-point" else np.float32(-1),
                                                   name))
    else:
        model = onnx.load(graph)
        if kind == "uint8 transpose":
            model.graph.node[0].input[0], model.graph.node[1].input[0] = "moved", "image"
            model.graph.node[1].output[0], model.graph.node[0].output[0] = "moved", "planes"
            model.graph.node.insert(0, model.graph.node.pop(1))
        elif kind == "mixed operands":
            model.graph.node[-1].input[1] = "half"
            model.graph.node.insert(5, helper.make_node("Cast", ["c"], ["half"], to=TensorProto.FLOAT16))
        elif kind == "custom operator":
            model.graph.node[-1].op_type, model.graph.node[-1].domain = "OwnDifference", "com.example"
            model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, folder / "spoilt.onnx")
    return folder / "spoilt.onnx"


@pytest.mark.parametrize("kind", ["zero-point", "scale", "bias", "uint8 transpose", "mixed operands",
                                  "custom operator"])
def test_tensorrt_rtx_refuses_what_it_should(kind, tmp_path):
    done = build(spoilt(kind, tmp_path))
    assert done.returncode == 1 and "TensorRT" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stdout + done.stderr


def test_tensorrt_rtx_refuses_batches_in_disorder(tmp_path):
    done = build(small_graph(tmp_path / "fp32.onnx"), RTX_BATCH="4:1:2")
    assert done.returncode == 1 and "(4, 1, 2)" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stdout + done.stderr


def test_the_batch_of_tensorrt_is_three_numbers():
    assert parse_batch("1:4:16") == (1, 4, 16)
    for text in ("1:4", "4:1:16", "0:1:1", "1:4:1000", "a:b:c", "1:2:3:4"):
        with pytest.raises(InputError, match="--batch is invalid"):
            parse_batch(text)


class OverMocks:
    """Runs commands in processes on the mocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache" / "lineside" / "engines"
        shutil.rmtree(self.cache, ignore_errors=True)

    def __call__(self, *arguments: object, **more: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "-m", "lineside", *map(str, arguments)], capture_output=True, text=True,
                              timeout=200, env=environment(self.folder, **more))
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def over_mocks(mocks) -> OverMocks:
    return OverMocks(mocks)


def test_tensorrt_engines_of_a_bundle_are_built_offered_and_run(over_mocks, bundle_of, cloth, tmp_path):
    good = cloth / "test" / "good"
    image = next(good.iterdir())
    code, out, err = over_mocks("engine", bundle_of, "--good", good, "--batch", "1:2:4", "--layers", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["offered"] == ["fp32", "fp16", "int8"] and made["device"]["gpu"] == "mock without a GPU"
    bundle = load_bundle(bundle_of)
    for precision, built in made["precisions"].items():
        assert not built["cached"] and built["without_graphs"] is None and built["layers"] == {"the whole graph": 1.0}
        assert Path(built["plan"]).parent == over_mocks.cache and built["ms_per_image"] > 0
        assert bundle.threshold(precision, "tensorrt").value == built["threshold"]
        assert built["threshold"] == pytest.approx(bundle.threshold(precision, "openvino").value, rel=0.05)
    assert bundle.card.precisions["int8"].ms_per_image.keys() == {"openvino", "tensorrt"}
    times = {name: built["ms_per_image"] / (1 if name == "fp32" else WORTH) for name,
             built in made["precisions"].items()}
    assert made["auto"] == min(times, key=lambda name: times[name])
    timing = list(over_mocks.cache.glob("timing-*.cache"))
    assert len(timing) == 1 and timing[0].read_bytes() == b"timed" * 3
    code, out, err = over_mocks("engine", bundle_of, "--good", good, "--batch", "1:2:4")
    assert code == 0 and out.count("cached") == 3, out + err

    inspect = ("inspect", bundle_of, image, "--out", tmp_path / "out", "--precision", "int8", "--json")
    code, out, err = over_mocks(*inspect)
    assert code == 0 and json.loads(out)[0]["threshold"] == made["precisions"]["int8"]["threshold"], err
    code, out, err = over_mocks(*inspect, "--backend", "openvino")
    assert code == 0 and json.loads(out)[0]["threshold"] == bundle.threshold("int8", "openvino").value, err
    code, _, err = over_mocks(*inspect, MOCK_TENSORRT_VERSION="10.16.1.11")
    assert code == 2 and "is stale: built for tensorrt 10.13.2.6, this machine has 10.16.1.11" in err
    assert "Traceback" not in err
    code, _, err = over_mocks("calibrate", bundle_of, "--good", good, "--false-reject-rate", 0.2)
    assert code == 0, err
    changed = load_bundle(bundle_of)
    assert {changed.threshold(precision, "tensorrt").false_reject_rate for precision in made["offered"]} == {0.2}
    assert {changed.threshold(precision, "openvino").false_reject_rate for precision in made["offered"]} == {0.2}


def test_what_tensorrt_engine_refuses(over_mocks, calibrated, cloth, lineside):
    good = ("--good", cloth / "test" / "good")
    for arguments, words in ((("--batch", "4", *good), "--batch is invalid"),
                             (("--precision", "bf16", *good), "does not offer precision bf16"),
                             (("--precision", "int8", *good), "does not offer precision int8"),
                             ((), "rests on other good parts")):  # all before the GPU is used
        code, out, err = lineside("engine", calibrated, *arguments)
        assert code == 2 and words in err, (words, out, err)
    for more, words in (({"MOCK_NO_GPU": "1"}, "no GPU is visible"),
                        ({"MOCK_TENSORRT_VERSION": "8.6.1"}, "this TensorRT is too old; got 8.6.1")):
        code, out, err = over_mocks("engine", calibrated, *good, **more)
        assert code == 2 and words in err and "Traceback" not in err, (words, out, err)
    assert not list(over_mocks.cache.glob("*.plan")) and load_bundle(calibrated).threshold("fp32", "tensorrt") is None
    golden = calibrated / "model" / "golden" / "maps.npz"  # a GPU that computes something else
    with np.load(golden) as data:
        maps = data["maps"]
    np.savez_compressed(golden, maps=maps + np.float32(0.1) * np.ptp(maps))
    from tests.edge.inspection.test_golden import seal_again

    seal_again(calibrated)
    code, _, err = over_mocks("engine", calibrated, *good)
    assert code == 2 and "no plan of" in err and "golden part" in err, err
    assert "has another map in fp32 on tensorrt" in err, err
    assert not list(over_mocks.cache.glob("*.plan"))


def test_without_tensorrt_the_engine_command_says_what_is_missing(calibrated, cloth, lineside):
    code, _, err = lineside("engine", calibrated, "--good", cloth / "test" / "good")
    assert code == 2 and ("PyCUDA" in err or "CUDA driver" in err or "TensorRT is not installed" in err), err
    code, _, err = lineside("inspect", calibrated, cloth, "--out", cloth / "out", "--backend", "tensorrt")
    assert code == 2 and "tensorrt cannot run here" in err, err


@pytest.mark.parametrize(("code", "sticky"), [(701, 0), (719, 1)])
def test_a_line_over_tensorrt_survives_a_failure_and_a_lost_gpu(over_mocks, bundle_of, cloth, tmp_path, code, sticky):
    """A transient failure costs one part; a permanent one ends the runtime, which is restarted. Every part is accounted
    for.
    """
    good = cloth / "test" / "good"
    built, _, err = over_mocks("engine", bundle_of, "--good", good, "--precision", "fp32", "--batch", "1:1:1")
    assert built == 0, err
    (tmp_path / "line").mkdir()
    made = Rig(tmp_path / "line", bundle_of, cloth / "test", loop=True)
    try:
        plc = made.plc(0, 10)  # unlimited, since triggers during the runtime's restart are refused
        line = subprocess.Popen([sys.executable, HERE / "failing_line.py", str(made.folder / "line.toml"), "25",
                                 str(code), str(sticky)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environment(over_mocks.folder))
        made.processes.append(line)
        ledger, told = finish(line, 100)
        assert "is ready in fp32 on tensorrt" in told
        rows = made.rows()
        assert ledger["triggers"] == ledger["passed"] + ledger["rejected"] + ledger["uninspected"] == len(rows), told
        assert line.returncode == 0 and ledger["causes"].get("engine") == 1 and "Traceback" not in told, told
        if sticky:
            assert "the GPU was lost" in told and "the runtime ended with exit code 3 and was restarted" in told, told
        else:
            assert ledger["uninspected"] == 1, told
        plc.send_signal(signal.SIGTERM)
        summary, _ = finish(plc)
        assert summary["escaped_ids"] == []
        assert summary["triggers"] == len(rows) + summary["refused"] + summary["unacknowledged"]
    finally:
        for process in made.processes:
            process.kill()
            process.wait()
    assert os.path.exists(made.folder / "journal.db")


def test_the_packaged_bundle_builds_with_tensorrt_rtx():
    from edge.tools.gpu_report import DEMO

    done = build(DEMO / "model" / "fp32.onnx")
    assert done.returncode == 0, done.stderr

"""`lineside quantize` on a small bundle: what it writes, what it offers, and what stays unchanged if it fails."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import export.quantize
from edge.base.errors import BundleError
from edge.bundle.bundle import load_bundle, write_card
from edge.engines.openvino_graphs import device_name
from edge.inspection.golden import golden_scores, read_golden
from edge.inspection.inspector import Inspector
from export.maps import OnnxRuntimeMaps
from export.precisions import Result
from tests.edge.inspection.test_golden import seal_again

FRAMES = 120
STRICT = "flips=0,contrast=0,auroc=0,aupro=0"


def test_it_writes_graphs_thresholds_and_says_what_it_found(quantised):
    folder, printed = quantised
    bundle = load_bundle(folder)
    assert {"fp16.onnx", "int8.onnx", "golden/maps-int8.npz"} <= set(bundle.card.files)
    assert {"fp32", "fp16", "int8"} <= set(printed["offered"]) == set(bundle.offered()) and printed["frames"] == FRAMES
    for precision in bundle.offered():
        limit = bundle.threshold(precision, "openvino")
        assert limit is not None and limit.good_parts == 24 and limit.false_reject_rate == 0.1
    int8 = printed["precisions"]["int8"]
    assert int8["nodes"] > len(int8["kept"]) and int8["ranges"] in ("minmax", "percentile") and int8["ms_per_image"] > 0
    assert int8["largest_difference"] > 0 and int8["decisions"] == FRAMES and len(int8["found"]) == 10
    assert printed["precisions"]["fp32"]["flips"] == 0
    types = {node.op_type for node in onnx.load(folder / "model" / "int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types
    kinds = {value.data_type for value in onnx.load(folder / "model" / "fp16.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_report_is_one_whole_page(quantised):
    text = (quantised[0] / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", text) and "http" not in text
    for words in ("flipped decisions", "Thresholds on OpenVINO", "The same frame in each precision",
                  "Good parts and threshold", "Speed", "Nodes in INT8", "Decisions flipped in INT8",
                  "largest map difference"):
        assert words in text, words
    assert text.count("data:image") > 20


@pytest.mark.parametrize("precision", ["fp16", "int8", "auto"])
def test_a_passed_precision_is_run(quantised, cloth, tmp_path, lineside, precision):
    folder, printed = quantised
    image = next((cloth / "test" / "good").iterdir())
    code, out, err = lineside("inspect", folder, image, "--out", tmp_path / "out", "--precision", precision, "--json")
    chosen = printed["auto"] if precision == "auto" else precision
    assert code == 0 and json.loads(out)[0]["threshold"] == load_bundle(folder).threshold(chosen, "openvino").value, err
    code, out, _ = lineside("evaluate", folder, "--data", cloth, "--precision", precision, "--json")
    assert code == 0 and json.loads(out)["precision"] == chosen and json.loads(out)["pixel_auroc"] is not None


def test_auto_is_the_fastest_that_is_offered(bundle_of):
    bundle = load_bundle(bundle_of)
    model, card = bundle_of / "model", bundle.card
    for int8, expected in ((40.0, "fp32"), (9.7, "fp32"), (9.0, "int8")):
        times = {"fp32": 10.0, "bf16": 30.0, "fp16": 20.0, "int8": int8}
        cards = {name: found.model_copy(update={"ms_per_image": {"openvino": times[name]}}) for name,
                 found in card.precisions.items()}
        write_card(model, card.model_copy(update={"precisions": cards}))
        assert load_bundle(bundle_of).choose("auto", "openvino") == expected


def test_a_precision_that_changes_decisions_is_not_offered_and_keeps_no_threshold(bundle_of, cloth, tmp_path, lineside):
    good = cloth / "test" / "good"
    image = next(good.iterdir())
    assert load_bundle(bundle_of).threshold("int8", "openvino") is not None
    (bundle_of / ".quantize").mkdir()
    (bundle_of / ".quantize" / "int8.onnx").write_bytes(b"of a run that was killed")
    code, out, err = lineside("quantize", bundle_of, "--good", good, "--frames", FRAMES, "--limits", STRICT,
                              "--minutes", 0, "--json")
    assert code == 0 and not (bundle_of / ".quantize").exists(), err
    found = json.loads(out)["precisions"]["int8"]
    assert not found["passed"] and found["reason"] and "int8" not in json.loads(out)["offered"]
    bundle = load_bundle(bundle_of)
    assert bundle.threshold("int8", "openvino") is None and bundle.threshold("fp32", "openvino") is not None
    code, _, err = lineside("inspect", bundle_of, image, "--out", tmp_path / "out", "--precision", "int8")
    assert code == 2 and "does not offer precision int8" in err and "report.html" in err
    code, _, err = lineside("evaluate", bundle_of, "--data", cloth, "--precision", "int8")
    assert code == 2 and "changes decisions" in err
    code, out, _ = lineside("evaluate", bundle_of, "--data", cloth, "--precision", "int8", "--ungated", "--json")
    assert code == 0 and json.loads(out)["threshold"] is None
    assert json.loads(out)["precision"] == "int8" and json.loads(out)["image_auroc"] is not None


def test_two_do_not_quantise_one_bundle(calibrated, cloth, lineside):
    held = os.open(calibrated, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = lineside("quantize", calibrated, "--good", cloth / "test" / "good", "--frames", FRAMES,
                                "--minutes", 0)
        assert code == 2 and "is being quantised" in err
    finally:
        os.close(held)


def test_before_quantize_only_float32_is_offered(calibrated, cloth, tmp_path, lineside):
    image = next((cloth / "test" / "good").iterdir())
    for precision, text in (("int8", "not measured against float32"), ("bf16", "lineside quantize"),
                            ("fp8", "no such precision")):
        code, _, err = lineside("inspect", calibrated, image, "--out", tmp_path / "out", "--precision", precision)
        assert code == 2 and text in err
    assert load_bundle(calibrated).choose("auto", "openvino") == "fp32"


def test_it_needs_a_threshold_and_its_good_parts(bundle, calibrated, cloth, lineside):
    before = sorted((bundle / "model").iterdir())
    code, _, err = lineside("quantize", calibrated, "--frames", FRAMES)
    assert code == 2 and "rests on other good parts" in err and "lineside calibrate --good" in err
    code, _, err = lineside("quantize", calibrated, "--good", cloth / "test" / "good", "--frames", 50)
    assert code == 2 and "more frames" in err
    shutil.copy(calibrated / "decision.toml", calibrated / "kept.toml")
    text = (calibrated / "decision.toml").read_text()
    (calibrated / "decision.toml").write_text(text[: text.index("[[threshold]]")])
    code, _, err = lineside("quantize", calibrated, "--good", cloth / "test" / "good")
    assert code == 2 and "no threshold" in err and "lineside calibrate" in err
    assert sorted((bundle / "model").iterdir()) == before


def test_a_set_that_nobody_reviewed_is_refused(quantised, calibrated, cloth, tmp_path, lineside):
    reviewed = Path(quantised[1]["calibration"])
    assert reviewed.name == "set" and quantised[1]["precisions"]["int8"]["passed"]
    folder = shutil.copytree(reviewed, tmp_path / "set")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "reviewed": False}))
    code, _, err = lineside("quantize", calibrated, "--good", cloth / "test" / "good", "--calibration", folder,
                            "--frames", FRAMES)
    assert code == 2 and "nobody has reviewed" in err and "--leave-out" in err


def test_a_stop_leaves_a_bundle_that_runs_in_float32(bundle_of, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    shutil.copy(bundle_of / "model" / "int8.onnx", tmp_path)
    results = {"fp32": Result("fp32", None), "int8": Result("int8", None, ms_per_image=1.0)}
    maps = {"int8": read_golden(load_bundle(bundle_of), "int8")[2]}
    monkeypatch.setattr(export.quantize, "hash_files", stop)  # after the graphs, before the card
    with pytest.raises(KeyboardInterrupt):
        export.quantize.offer(load_bundle(bundle_of), tmp_path, results, maps)
    left = load_bundle(bundle_of)
    assert left.offered() == ["fp32"] and left.threshold("fp32", "openvino") is not None
    assert (bundle_of / "model" / "golden" / "maps-int8.npz").exists() and "int8.onnx" not in left.card.files


def test_calibrate_sets_every_offered_precision(bundle_of, cloth, lineside):
    before = {p: load_bundle(bundle_of).threshold(p, "openvino") for p in ("fp32", "int8")}
    code, out, _ = lineside("calibrate", bundle_of, "--good", cloth / "test" / "good", "--false-reject-rate", 0.2,
                            "--json")
    after = {p: load_bundle(bundle_of).threshold(p, "openvino") for p in ("fp32", "int8")}
    assert code == 0 and set(json.loads(out)["precisions"]) == set(load_bundle(bundle_of).offered())
    for precision, limit in after.items():
        assert limit.false_reject_rate == 0.2 and limit.value < before[precision].value


def test_another_rule_has_another_gate(bundle_of, cloth, lineside):
    path = bundle_of / "decision.toml"
    path.write_text(path.read_text().replace("min_area_px = 1.0", "min_area_px = 9.0"))
    assert lineside("calibrate", bundle_of, "--good", cloth / "test" / "good", "--false-reject-rate", 0.1)[0] == 0
    bundle = load_bundle(bundle_of)
    assert bundle.offered() == ["fp32"]
    with pytest.raises(BundleError, match=r"measured with another rule.*lineside quantize"):
        bundle.choose("int8", "openvino")


def test_int8_has_golden_maps_of_its_own(bundle_of):
    bundle = load_bundle(bundle_of)
    own, float32 = read_golden(bundle, "int8")[2], read_golden(bundle)[2]
    assert own.shape == float32.shape and not np.array_equal(own, float32)
    for precision in bundle.offered():
        with Inspector(bundle, precision=precision, threads=1) as inspector:
            assert len(golden_scores(inspector)["good"]) == 3
    card = bundle.card.precisions["int8"]
    assert card.device == device_name() and card.tolerance_on_device < card.tolerance


def test_on_another_device_golden_parts_may_differ_as_runtimes_do(bundle_of, monkeypatch):
    monkeypatch.setattr("edge.engines.openvino.OpenVino.device_name", lambda self: "another one")
    graph = bundle_of / "model" / "int8.onnx"
    with Inspector(load_bundle(bundle_of), precision="int8") as inspector:
        with OnnxRuntimeMaps(graph) as run:
            monkeypatch.setattr(inspector, "raw_map", run)
            golden_scores(inspector)
        monkeypatch.undo()
        with OnnxRuntimeMaps(graph) as run:
            monkeypatch.setattr(inspector, "raw_map", run)
            with pytest.raises(BundleError, match="has another map in int8"):
                golden_scores(inspector)


def test_int8_with_one_scale_times_8_is_named_by_its_golden_part(bundle_of):
    graph = bundle_of / "model" / "int8.onnx"
    whole = graph.read_bytes()
    model = onnx.load(graph)
    scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    missed = []
    for name in sorted(scales)[::10]:
        model = onnx.load_from_string(whole)
        scale = next(value for value in model.graph.initializer if value.name == name)
        scale.CopyFrom(numpy_helper.from_array(np.asarray(8 * numpy_helper.to_array(scale)), name))
        onnx.save(model, graph)
        seal_again(bundle_of)
        with Inspector(load_bundle(bundle_of), precision="int8", threads=1) as inspector:
            try:
                golden_scores(inspector)
                missed.append(name)
            except BundleError as error:
                assert re.search(r"golden part \d\d\.png \(.*\) of .* has another map in int8 on openvino", str(error))
    assert missed == [], f"{len(missed)} of {len(scales)}"

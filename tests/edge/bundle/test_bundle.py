"""A damaged bundle gives no verdict; a changed rule must be calibrated again."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from edge.base.errors import BundleError
from edge.bundle.bundle import load_bundle
from edge.bundle.decision import read_decision
from edge.images.files import write_image


def test_a_whole_bundle_loads(calibrated):
    loaded = load_bundle(calibrated)
    assert loaded.card.detector == "sidn"
    assert loaded.calibrated_threshold("fp32", "openvino").good_parts == 24


@pytest.mark.parametrize("name", ["fp32.onnx", "images.json", "golden/maps.npz", "golden/01.png", "golden/parts.json",
                                  "model.toml"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_anywhere_in_the_model_is_found(bundle, name, where):
    path = bundle / "model" / name
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["model/fp32.onnx", "model/images.json", "model/model.toml", "decision.toml"])
def test_a_truncated_or_missing_file_is_found(bundle, name):
    path = bundle / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 4])
    with pytest.raises(BundleError, match=re.escape(path.name)):
        load_bundle(bundle).threshold("fp32", "openvino")
        if name == "decision.toml":  # a cut in a comment leaves valid TOML without post-filter
            raise AssertionError("not found")
    path.unlink()
    with pytest.raises(BundleError, match=re.escape(path.name)):
        load_bundle(bundle)


@pytest.mark.parametrize(("old", "new"), [
    ('"median:5"', '"median:3"'), ("min_area_px = 1.0", "min_area_px = 40.0"), ("# roi = [0, 0, 640, 480]",
                                                                                "roi = [0, 0, 90, 90]"),
    ("false_reject_rate = 0.1", "false_reject_rate = 0.01"), ("good_parts = 24", "good_parts = 24000"),
])
def test_a_rule_changed_after_calibration_gives_no_verdict_until_calibrated_again(calibrated, cloth, lineside, old,
                                                                                  new):
    path = calibrated / "decision.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    code, _, err = lineside("inspect", calibrated, cloth / "test" / "good" / "00000.png", "--out",
                            calibrated.parent / "out")
    assert code == 2 and "lineside calibrate" in err
    assert lineside("calibrate", calibrated, "--good", cloth / "test" / "good", "--false-reject-rate", "0.1")[0] == 0
    assert lineside("inspect", calibrated, cloth / "test" / "good" / "00000.png", "--out",
                    calibrated.parent / "out")[0] == 0


def test_a_threshold_changed_by_hand_is_found(calibrated):
    path = calibrated / "decision.toml"
    path.write_text(re.sub(r"\nvalue = .*", "\nvalue = 0.99", path.read_text()))
    with pytest.raises(BundleError, match="changed after it was calibrated"):
        load_bundle(calibrated).threshold("fp32", "openvino")


def test_the_scale_may_be_set_after_calibration(calibrated):
    path = calibrated / "decision.toml"
    path.write_text(path.read_text().replace("# mm_per_px = 0.05", "mm_per_px = 0.05"))
    assert load_bundle(calibrated).threshold("fp32", "openvino") is not None


def test_a_new_ignore_mask_breaks_the_seal(bundle, cloth, lineside):
    path = bundle / "decision.toml"
    path.write_text(path.read_text().replace('# ignore_mask = "ignore.png"', 'ignore_mask = "ignore.png"'))
    mask = np.zeros((96, 96), np.uint8)
    mask[:10] = 255
    write_image(bundle / "ignore.png", mask)
    assert lineside("calibrate", bundle, "--good", cloth / "test" / "good", "--false-reject-rate", "0.1")[0] == 0
    assert load_bundle(bundle).threshold("fp32", "openvino") is not None
    mask[:20] = 255
    write_image(bundle / "ignore.png", mask)
    with pytest.raises(BundleError, match="changed after"):
        load_bundle(bundle).threshold("fp32", "openvino")


def test_comments_and_keys_of_the_decision_survive_calibration(bundle, cloth, lineside):
    path = bundle / "decision.toml"
    text = path.read_text().replace("min_area_px = 1.0", "min_area_px = 9.0  # agreed with quality on Monday")
    path.write_text(text)
    for _ in range(2):
        assert lineside("calibrate", bundle, "--good", cloth / "test" / "good", "--false-reject-rate", "0.1")[0] == 0
    assert path.read_text().startswith(text.rstrip())
    assert len(read_decision(bundle).threshold) == 1


@pytest.mark.parametrize(("line", "words"), [
    ("min_aera_px = 4", "did you mean 'min_area_px'"), ('mm_per_px = "fine"', "mm_per_px"), ("roi = [1, 2, 3]", "roi"),
    ("roi = [0, 0, 0, 5]", "width and height of at least 1"), ("mm_per_px = -1.0", "greater than 0"),
])
def test_a_wrong_key_is_named_with_what_is_expected(bundle, line, words):
    path = bundle / "decision.toml"
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(BundleError, match=words):
        load_bundle(bundle)


def test_post_filter_errors_name_the_steps(bundle):
    path = bundle / "decision.toml"
    path.write_text(path.read_text().replace('"median:5"', '"median:6"'))
    with pytest.raises(BundleError, match=r"post_filter.*median:3"):
        load_bundle(bundle)


def test_no_bundle_at_all(tmp_path, lineside):
    for path in (tmp_path / "nothing", tmp_path):
        code, _, err = lineside("inspect", path, "x.png", "--out", tmp_path / "o")
        assert code == 2 and "lineside export" in err


def test_an_interrupted_export_leaves_nothing(exported, fitted_run, tmp_path, monkeypatch):
    import export.onnx

    monkeypatch.setattr(export.onnx, "write_bundle", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export.onnx.export_run(fitted_run, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(exported, tmp_path / "old")
    with pytest.raises(Exception, match="exists already"):
        export.onnx.export_run(fitted_run, tmp_path / "old")

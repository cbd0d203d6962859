"""Conformal thresholds: the order statistic, its guarantee, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from scipy.stats import beta

from calib.threshold import calibrate, parts_needed, rank, smallest_rate, upper_bound
from edge.base.errors import BundleError, InputError
from edge.bundle.bundle import load_bundle
from edge.images.files import read_image, write_image


@pytest.mark.parametrize(("n", "rate", "k"), [(19, 0.05, 19), (20, 0.05, 20), (39, 0.05, 38), (99, 0.01, 99),
                                              (9, 0.1, 9), (100, 0.1, 91)])
def test_rank_is_the_ceiling_of_the_exact_product(n, rate, k):
    assert rank(n, rate) == k


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1, 0.05, 0.03, 0.01, 0.001, 0.07])
def test_parts_needed_is_the_smallest_number_that_has_a_rank(rate):
    n = parts_needed(rate)
    assert rank(n, rate) <= n
    assert rank(n - 1, rate) > n - 1


@pytest.mark.parametrize("n", [1, 2, 5, 11, 19, 57, 400])
def test_smallest_rate_can_be_promised_and_is_tight(n):
    assert rank(n, smallest_rate(n)) <= n
    assert rank(n, round(smallest_rate(n) - 0.0001, 4)) > n or smallest_rate(n) - 0.0001 >= 1 / (n + 1)


@pytest.mark.parametrize(("n", "k"), [(11, 11), (19, 19), (99, 95), (400, 397), (5000, 4751)])
def test_upper_bound_is_the_quantile_of_the_beta_distribution(n, k):
    assert upper_bound(n, k) == pytest.approx(beta.ppf(0.95, n + 1 - k, k), abs=1e-9)


def test_the_promise_holds_over_many_calibrations():
    rng, n, rate = np.random.default_rng(0), 30, 0.1
    rejected = []
    for _ in range(4000):
        threshold = np.sort(rng.gamma(2, size=n))[rank(n, rate) - 1]
        rejected.append(np.mean(rng.gamma(2, size=200) > threshold))
    assert np.mean(rejected) <= rate + 0.003
    assert np.mean(rejected) >= rate - 1 / (n + 1) - 0.003
    assert np.mean(np.array(rejected) > upper_bound(n, rank(n, rate))) <= 0.06


def test_calibrate_takes_the_kth_smallest_score(bundle, cloth):
    result = calibrate(load_bundle(bundle), cloth / "test" / "good", 0.1)
    assert len(result.scores) == 24
    assert result.threshold.value == sorted(result.scores)[rank(24, 0.1) - 1]
    assert load_bundle(bundle).calibrated_threshold("fp32", "openvino") == result.threshold


def test_too_few_parts_say_how_many_more_and_change_nothing(bundle, lineside):
    before = (bundle / "decision.toml").read_bytes()
    code, _, err = lineside("calibrate", bundle, "--false-reject-rate", "0.05")
    held_out = len(load_bundle(bundle).images()["held_out"])
    assert code == 2
    assert f"{19 - held_out} more" in err and f"{smallest_rate(held_out):g}" in err
    assert (bundle / "decision.toml").read_bytes() == before


def test_images_that_were_fitted_on_are_refused_under_any_name(bundle, cloth, tmp_path, lineside):
    record = load_bundle(bundle).images()
    good = tmp_path / "good"
    shutil.copytree(cloth / "test" / "good", good)
    shutil.copy(cloth / "train" / "good" / record["fitted"][0]["name"], good / "innocent.png")
    before = (bundle / "decision.toml").read_bytes()
    code, _, err = lineside("calibrate", bundle, "--good", good, "--false-reject-rate", "0.1")
    assert code == 2 and "innocent.png" in err and "fitted on" in err
    assert (bundle / "decision.toml").read_bytes() == before


def test_grey_images_stored_as_rgb_are_recognised(bundle, cloth, tmp_path, lineside):
    record = load_bundle(bundle).images()
    grey = read_image(cloth / "train" / "good" / record["fitted"][0]["name"])
    shutil.copytree(cloth / "test" / "good", tmp_path / "good")
    write_image(tmp_path / "good" / "rgb.png", np.repeat(grey, 3, axis=2))
    code, _, err = lineside("calibrate", bundle, "--good", tmp_path / "good", "--false-reject-rate", "0.1")
    assert code == 2 and "rgb.png" in err


def test_another_folder_of_the_same_layout_is_not_taken_for_the_images_set_aside(bundle, cloth, tmp_path, monkeypatch,
                                                                                 lineside):
    other = tmp_path / "other"
    shutil.copytree(cloth, other)
    for path in (other / "train" / "good").iterdir():
        write_image(path, read_image(path)[::-1].copy())
    loaded = load_bundle(bundle)
    images = {**loaded.images(), "data": str(other / "train" / "good")}
    monkeypatch.setattr(type(loaded), "images", lambda self: images)
    code, _, err = lineside("calibrate", bundle, "--false-reject-rate", "0.4")
    assert code == 2 and "is not the image that the fit set aside" in err


def test_a_folder_with_defects_in_it_is_no_folder_of_good_parts(bundle, cloth, tmp_path, lineside):
    code, _, err = lineside("calibrate", bundle, "--good", cloth / "test" / "..", "--false-reject-rate", "0.1")
    assert code == 2 and "fitted on" in err  # train/good of the layout
    shutil.copytree(cloth / "test" / "hole", tmp_path / "mixed" / "hole")
    code, _, err = lineside("calibrate", bundle, "--good", tmp_path / "mixed", "--false-reject-rate", "0.1")
    assert code == 2 and "does not say which of its images are good" in err


def test_the_same_pixels_twice_count_once(bundle, cloth, tmp_path, lineside):
    good = tmp_path / "good"
    shutil.copytree(cloth / "test" / "good", good)
    first = sorted(good.iterdir())[0]
    shutil.copy(first, good / "again.png")
    code, out, _ = lineside("calibrate", bundle, "--good", good, "--false-reject-rate", "0.1", "--json")
    figures = json.loads(out)
    assert code == 0 and figures["good_parts"] == 24
    assert len(figures["duplicates"]) == 1


def test_held_out_images_that_are_gone_are_named(exported, bundle, monkeypatch, tmp_path):
    loaded = load_bundle(bundle)
    monkeypatch.setattr(type(loaded), "images", lambda self: {"data": str(tmp_path), "fitted": [],
                                                              "held_out": [{"name": "x.png"}]})
    with pytest.raises(InputError, match=r"missing.*--good"):
        calibrate(loaded, None, 0.5)


def test_a_rule_that_changes_while_parts_are_scored_is_not_sealed(bundle, cloth):
    path = bundle / "decision.toml"

    def edit(done: int, total: int) -> None:
        if done == 3:
            path.write_text(path.read_text().replace('"median:5"', '"median:3"'))

    with pytest.raises(BundleError, match="changed while"):
        calibrate(load_bundle(bundle), cloth / "test" / "good", 0.1, progress=edit)
    assert "threshold]" not in path.read_text()


def test_a_bundle_that_cannot_be_written_says_so(bundle, cloth, monkeypatch, lineside):
    monkeypatch.setattr("edge.bundle.decision.write_text_safely",
                        lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    code, _, err = lineside("calibrate", bundle, "--good", cloth / "test" / "good", "--false-reject-rate", "0.1")
    assert code == 2 and "No space left on device" in err


@pytest.mark.parametrize("rate", ["0", "1", "-0.1", "2"])
def test_rates_that_are_no_probability_are_refused(bundle, lineside, rate):
    assert lineside("calibrate", bundle, "--false-reject-rate", rate)[0] == 2


def test_a_calibration_set_that_nobody_looked_through_gives_no_threshold(bundle, cloth, tmp_path, lineside):
    assert lineside("collect", "--from", cloth / "test" / "good", "--out", tmp_path / "set", "--frames", 12)[0] == 0
    code, _, err = lineside("calibrate", bundle, "--good", tmp_path / "set", "--false-reject-rate", 0.2)
    assert code == 2 and "nobody has reviewed" in err and "--leave-out" in err
    assert load_bundle(bundle).threshold("fp32", "openvino") is None
    assert lineside("collect", "--out", tmp_path / "set", "--leave-out", "none")[0] == 0
    assert lineside("calibrate", bundle, "--good", tmp_path / "set", "--false-reject-rate", 0.2)[0] == 0

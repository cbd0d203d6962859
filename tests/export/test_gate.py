"""The gate: a precision's decisions compared with float32's, and what makes it fail."""

from __future__ import annotations

import numpy as np
import pytest

from calib.threshold import calibration_images, rank
from edge.base.errors import EngineError, InputError
from edge.bundle.bundle import load_bundle
from edge.images.files import read_image
from edge.images.frames import prepare_frame
from export.gate import LIMITS, Gate, Limits, contrast_at, parse_limits, saturating
from export.gate_frames import LADDER, make_frames


def contrast(image: np.ndarray) -> np.ndarray:
    """A simple stand-in for a network: each pixel's distance from the image's median."""
    values = image[..., 0].astype(np.float32)
    return np.abs(values - np.median(values))


@pytest.fixture
def frames(calibrated, cloth):
    bundle = load_bundle(calibrated)
    return bundle, make_frames(bundle, calibration_images(bundle, cloth / "test" / "good")[0], 200, 5)


@pytest.fixture
def gate(frames, cloth) -> Gate:
    bundle, made = frames
    good = []
    for path in calibration_images(bundle, cloth / "test" / "good")[0]:
        image = np.empty((64, 64, 1), np.uint8)
        prepare_frame(read_image(path), image)
        good.append((image[None], (96, 96)))
    return Gate(bundle, made, good, rank(len(good), 0.1), contrast)


def test_frames_show_good_parts_and_each_defect_at_every_contrast(frames):
    _, made = frames
    assert len(made) == 200 and sum(frame.defect is None for frame in made) == 120
    ladder = [frame for frame in made if frame.defect == 3]
    assert [frame.contrast for frame in ladder] == list(LADDER) and [frame.mask is None
                                                                     for frame in ladder] == [True] * 9 + [False]
    changes = [int(np.abs(frame.image.astype(int) - ladder[0].image).sum()) for frame in ladder]
    assert changes == sorted(changes) and changes[-1] > 100
    assert ladder[-1].mask.any() and not ladder[-1].mask.all()
    where = np.abs(ladder[-1].image.astype(int) - ladder[0].image)[..., 0]
    assert where[ladder[-1].mask].mean() > 5 * where[~ladder[-1].mask].mean()


def test_defects_lie_where_the_rule_looks_and_show(calibrated, cloth):
    path = calibrated / "decision.toml"
    path.write_text(path.read_text().replace("# roi = [0, 0, 640, 480]", "roi = [48, 0, 48, 48]"))
    bundle = load_bundle(calibrated)
    region = bundle.rule((96, 96)).region
    masks = [frame.mask for frame in make_frames(bundle, [next((cloth / "test" / "good").iterdir())], 200, 5)
             if frame.mask is not None]
    assert len(masks) == 8 and all(mask.any() for mask in masks)
    assert np.mean([(mask & region).sum() / mask.sum() for mask in masks]) > 0.8


def test_a_region_that_no_painted_defect_touches_is_refused(calibrated, cloth):
    path = calibrated / "decision.toml"
    path.write_text(path.read_text().replace("# roi = [0, 0, 640, 480]", "roi = [0, 0, 2, 2]"))
    with pytest.raises(InputError, match="no painted defect can be placed in the region of interest"):
        make_frames(load_bundle(calibrated), [next((cloth / "test" / "good").iterdir())], 200, 5)


def test_frames_that_memory_does_not_hold_are_refused(calibrated, cloth, monkeypatch):
    monkeypatch.setattr("export.gate_frames.MOST_BYTES", 64 * 64 * 150)
    with pytest.raises(InputError, match=r"do not fit into memory.*at most 150.*fewer --frames"):
        make_frames(load_bundle(calibrated), [next((cloth / "test" / "good").iterdir())], 151, 5)


def test_the_same_seed_draws_the_same_frames(frames, cloth):
    bundle, made = frames
    paths = calibration_images(bundle, cloth / "test" / "good")[0]
    again, other = make_frames(bundle, paths, 100, 5), make_frames(bundle, paths, 100, 6)
    assert np.array_equal(again[0].image, made[0].image) and not np.array_equal(other[0].image, made[0].image)


def test_the_same_maps_pass(gate):
    found = gate.compare(gate.measure(contrast), LIMITS["fp16"])
    assert found.passed and found.flips == [] and found.decisions == 200 and found.largest_difference == 0
    assert found.contrast_50 is not None and found.pixel_auroc > 0.6
    assert found.as_json()["flip_share"] == 0


def test_another_scale_turns_no_decision_since_the_threshold_is_its_own(gate):
    measured = gate.measure(lambda image: 2 * contrast(image))
    found = gate.compare(measured, LIMITS["int8"])
    assert measured.threshold == pytest.approx(2 * gate.reference.threshold) and found.passed
    assert found.largest_difference > 0.5


def test_noise_fails_and_is_told(gate):
    rng = np.random.default_rng(0)
    found = gate.compare(gate.measure(lambda image: contrast(image) + rng.normal(0, 12, (64, 64)).astype(np.float32)),
                         LIMITS["int8"])
    assert not found.passed and len(found.flips) > 1 and any("decisions flip" in reason for reason in found.reasons)


def test_a_map_that_loses_faint_defects_fails_by_contrast(gate):
    found = gate.compare(gate.measure(lambda image: np.where(contrast(image) > 60, contrast(image), 0) * np.float32(0.5)
                                      if contrast(image).max() < 110 else contrast(image)),
                         Limits(flips=1, auroc=1, aupro=1))
    assert not found.passed and all("of defects are found at contrast" in reason for reason in found.reasons)


def test_a_measurement_stops_once_it_cannot_pass(gate):
    seen = []
    assert gate.measure(lambda image: seen.append(1) or -contrast(image), most_flips=2) is None
    assert len(seen) < len(gate.good) + 200


def test_the_frames_that_turn_first_are_measured_first(gate):
    seen = []
    gate.measure(lambda image: seen.append(image) or contrast(image))
    score = {frame.image.tobytes(): score for frame, score in zip(gate.frames, gate.reference.scores, strict=True)}
    away = [abs(score[image.tobytes()] - gate.reference.threshold) for image in seen[len(gate.good):]]
    assert len(away) == 200 and away == sorted(away)


def test_a_map_that_is_not_finite_is_an_error(gate):
    with pytest.raises(EngineError, match="not finite"):
        gate.measure(lambda image: contrast(image) * np.nan)


@pytest.mark.parametrize(("found", "share", "expected"), [
    ([0.0] * 10, 0.5, None), ([1.0] * 10, 0.5, LADDER[0]), ([0, 0, 0, 0, 0, 0.5, 0.9, 1, 1, 1], 0.5, LADDER[5]),
    ([0, 0, 0, 0, 0, 0, 1, 0.8, 1, 1], 0.9, float(np.exp(np.interp(0.9, [0, 1], np.log(LADDER[5:7]))))),
])
def test_the_contrast_of_a_share_is_read_off_the_ladder(found, share, expected):
    got = contrast_at(found, share)
    assert got == expected if expected is None else got == pytest.approx(expected)


def test_limits_are_read():
    assert parse_limits(None) == LIMITS
    assert parse_limits("flips=0.01, contrast=0.2")["fp16"] == Limits(0.01, 0.2, 0.001, 0.001)
    for wrong in ("flips", "flips=x", "speed=0.1", "auroc=2", "aupro=-1", "flips=nan"):
        with pytest.raises(InputError, match="--limits is invalid"):
            parse_limits(wrong)


def test_activations_that_only_defects_saturate_are_named():
    def values(image):
        return {"calm": np.float32([0.5, 0.5]), "loud": np.float32([image.max(), 0]), "always": np.float32([9, 9])}

    zero, one = np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 200, np.uint8)
    assert saturating({"calm": 1.0, "loud": 100.0, "always": 1.0}, values, [zero], [zero, one]) == {"loud": 0.5}

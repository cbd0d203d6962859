"""score > threshold if and only if the rule, applied literally at that threshold, rejects."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge.base.errors import EngineError, InputError
from edge.bundle import rule as rules
from edge.bundle.rule import MORPHOLOGY, Rule, area_opening_maximum, check_post_filter, components, parse_step

SIDE = 24
GREY_STEPS = st.sampled_from(["mean:3", "mean:5", "median:3", "median:5", "open:3", "close:3", "erode:3", "dilate:5"])
BINARY_STEPS = st.sampled_from(["median:3", "median:5", "open:3", "open:5", "close:3", "close:5", "erode:3",
                                "dilate:3"])


def literal_rule(anomaly_map, steps, threshold, region, min_area):
    """The rule as decision.toml words it: black and white after the threshold. Shares no code with edge.bundle.rule."""
    current, binary = anomaly_map, False
    for step in steps:
        name, _, size = step.partition(":")
        if name == "threshold":
            current, binary = (current > threshold).astype(np.uint8), True
            continue
        k = int(size)
        if name == "mean":
            assert not binary
            current = cv2.blur(current, (k, k))
        elif name == "median":
            padded = np.pad(current, k // 2, mode="edge")
            windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k)).reshape(*current.shape, k * k)
            current = np.sort(windows, axis=2)[:, :, k * k // 2]
        else:
            current = cv2.morphologyEx(current, MORPHOLOGY[name], np.ones((k, k), np.uint8))
    kept = (current > 0) & region
    unseen = set(zip(*np.nonzero(kept), strict=True))
    while unseen:  # flood fill over eight neighbours
        frontier, area = [unseen.pop()], 0
        while frontier:
            y, x = frontier.pop()
            area += 1
            for neighbour in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if neighbour in unseen:
                    unseen.remove(neighbour)
                    frontier.append(neighbour)
        if area >= min_area:
            return True
    return False


def maps(draw):
    kind = draw(st.integers(0, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if kind == 0:  # few levels: many ties
        return rng.integers(0, 6, (SIDE, SIDE)).astype(np.float32) / 5
    noise = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    return noise if kind == 1 else cv2.GaussianBlur(noise, (0, 0), 2)


@st.composite
def cases(draw):
    anomaly_map = maps(draw)
    steps = [*draw(st.lists(GREY_STEPS, max_size=2)), "threshold", *draw(st.lists(BINARY_STEPS, max_size=2))]
    roi = draw(st.none() | st.tuples(*[st.integers(0, 10)] * 2, *[st.integers(6, SIDE - 10)] * 2).map(list))
    ignore = draw(st.none() | arrays(bool, (SIDE, SIDE), elements=st.booleans(), fill=st.just(False)))
    min_area = draw(st.integers(1, 30))
    return anomaly_map, steps, roi, ignore, min_area


def rule_of(steps, roi, ignore, min_area):
    try:
        return Rule(steps, map_size=(SIDE, SIDE), frame_size=(SIDE, SIDE), roi=roi, ignore=ignore, min_area_px=min_area)
    except InputError:
        return None  # a region smaller than the minimum area is refused


@settings(max_examples=400, deadline=None)
@given(case=cases(), pick=st.floats(0, 1), offset=st.sampled_from([-1, 0, 1]))
def test_score_above_threshold_is_reject(case, pick, offset):
    anomaly_map, steps, roi, ignore, min_area = case
    rule = rule_of(steps, roi, ignore, min_area)
    if rule is None:
        return
    grey = rule.grey(anomaly_map)
    score = rule.score(grey)
    candidates = [score, float(np.quantile(grey, pick))]
    for candidate in candidates:
        threshold = float(np.nextafter(np.float32(candidate), np.float32(np.inf * offset))) if offset else candidate
        rejects = literal_rule(anomaly_map, steps, np.float32(threshold), rule.region, min_area)
        assert (score > threshold) == rejects
        blobs, defective = rule.blobs(grey, threshold)
        assert bool(blobs) == rejects == bool(defective.any())


@settings(max_examples=100, deadline=None)
@given(case=cases(), threshold=st.floats(-1, 1))
def test_thresholds_between_two_floats_agree_with_the_blobs(case, threshold):
    anomaly_map, steps, roi, ignore, min_area = case
    rule = rule_of(steps, roi, ignore, min_area)
    if rule is not None:
        grey = rule.grey(anomaly_map)
        assert (rule.score(grey) > threshold) == bool(rule.blobs(grey, threshold)[0])


def test_a_threshold_that_rounds_up_in_float32_still_rejects_what_lies_between():
    threshold = 0.3
    value = np.float32(0.3)  # 0.30000001..., above the threshold
    rule = Rule(["threshold"], map_size=(4, 4), frame_size=(4, 4))
    grey = np.full((4, 4), value)
    assert rule.score(grey) > threshold
    assert rule.blobs(grey, threshold)[0]


@settings(max_examples=200, deadline=None)
@given(values=arrays(np.float32, (7, 8), elements=st.integers(0, 9).map(float)), area=st.integers(1, 56))
def test_area_opening_maximum_is_the_best_level_of_all(values, area):
    region = np.ones(values.shape, bool)
    levels = [v for v in np.unique(values) if literal_rule(values, ["threshold"], np.nextafter(v, np.float32(-1)),
                                                           region, area)]
    assert area_opening_maximum(values, region, area) == max(levels)


@pytest.mark.parametrize("many", [0, 1000])
@settings(max_examples=150)
@given(mask=arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.booleans()),
       coarse=st.booleans())
def test_components_are_those_of_opencvs_statistics(many, mask, coarse):
    """Also those that lie in a hole of another, and those of a single pixel."""
    mask = np.kron(mask, np.ones((2, 2), bool)) if coarse else mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "MANY", many)
        found = {(*box, int(pixels.sum())) for box, pixels in components(mask)}
        painted = np.zeros_like(mask)
        for (x, y, width, height), pixels in components(mask):
            assert not (painted[y:y + height, x:x + width] & pixels).any()
            painted[y:y + height, x:x + width] |= pixels
    stats = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)[2]
    assert found == {tuple(map(int, row)) for row in stats[1:]}
    assert np.array_equal(painted, mask)


def test_blobs_are_told_in_frame_pixels_and_square_millimetres():
    rule = Rule(["threshold"], map_size=(64, 64), frame_size=(128, 256), mm_per_px=0.5, min_area_px=1)
    grey = np.zeros((64, 64), np.float32)
    grey[10:14, 20:30] = 0.9
    grey[40, 40] = 0.8
    blobs, _ = rule.blobs(grey, 0.5)
    assert blobs[0].box == (80, 20, 40, 8)
    assert blobs[0].area_px == 40 * 8 and blobs[0].area_mm2 == 40 * 8 * 0.25
    assert blobs[0].peak == np.float32(0.9)
    assert [blob.area_px for blob in blobs] == [320, 8]


def test_minimum_area_is_in_frame_pixels():
    grey = np.zeros((64, 64), np.float32)
    grey[:3, :3] = 1
    for min_area, verdict in ((36, True), (37, False)):
        rule = Rule(["threshold"], map_size=(64, 64), frame_size=(128, 128), min_area_px=min_area)
        assert bool(rule.blobs(grey, 0.5)[0]) is verdict
        assert (rule.score(grey) > 0.5) is verdict


def test_nothing_outside_the_region_or_under_the_mask_counts():
    ignore = np.zeros((32, 32), bool)
    ignore[:, 16:] = True
    rule = Rule(["threshold"], map_size=(32, 32), frame_size=(32, 32), roi=[8, 8, 16, 16], ignore=ignore)
    for (y, x), counts in {(2, 10): False, (10, 20): False, (10, 10): True}.items():
        grey = np.zeros((32, 32), np.float32)
        grey[y, x] = 1
        assert (rule.score(grey) == 1) is counts


@pytest.mark.parametrize(("arguments", "words"), [
    ({"roi": [20, 0, 20, 10]}, "outside the frame"),
    ({"ignore": np.zeros((8, 8), bool)}, "ignore mask does not fit"),
    ({"roi": [0, 0, 4, 4], "min_area_px": 17}, "nothing that could be rejected"),
    ({"ignore": np.ones((32, 32), bool)}, "nothing that could be rejected"),
])
def test_a_rule_that_cannot_work_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        Rule(["threshold"], map_size=(32, 32), frame_size=(32, 32), **arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_gives_no_verdict(value):
    rule = Rule(["threshold"], map_size=(8, 8), frame_size=(8, 8))
    grey = np.zeros((8, 8), np.float32)
    grey[3, 3] = value
    with pytest.raises(EngineError, match="not finite"):
        rule.grey(grey)


@pytest.mark.parametrize("steps", [[], ["median:5"], ["threshold", "threshold"], ["threshold", "mean:3"],
                                   ["median:7", "threshold"], ["mean:4", "threshold"], ["open:1", "threshold"],
                                   ["blur:3", "threshold"], ["mean", "threshold"], ["mean:-3", "threshold"],
                                   ["threshold:3"]])
def test_post_filters_that_make_no_sense_are_refused(steps):
    with pytest.raises(ValueError, match=r"threshold|one of"):
        check_post_filter(steps)


def test_steps_parse():
    assert [parse_step(step) for step in ("mean:9", "median:5", "threshold", "open:3")] == [
        ("mean", 9), ("median", 5), ("threshold", 0), ("open", 3)]

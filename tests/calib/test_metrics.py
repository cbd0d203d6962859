"""Figures against plain versions of their definitions, and what `evaluate` does with odd sets."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from scipy.ndimage import label

from calib.metrics import labelled_images, pixel_figures, read_mask, smoothing
from edge.base.errors import InputError
from edge.images.files import write_image

KEYS = {"image_auroc", "pixel_auroc", "aupro", "pixel_ap", "false_reject_rate", "escape_rate", "good", "defective",
        "ms_per_image"}


def plain_aupro(maps, masks, limit=0.3):
    """Mean overlap with each region over the false-positive rate, at every level, by the definition (Bergmann et al.
    2021).
    """
    regions = [(i, labels == r) for i, mask in enumerate(masks) for labels, n in [label(mask, np.ones((3, 3)))]
               for r in range(1, n + 1)]
    negatives = ~np.stack(masks)
    points = [(0.0, 0.0)]
    for level in np.unique(np.stack(maps))[::-1]:
        above = np.stack(maps) >= level
        points.append((above[negatives].mean(), np.mean([above[i][region].mean() for i, region in regions])))
    fpr, pro = np.array(points).T
    inside = fpr < limit
    fpr, pro = np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))
    return np.trapezoid(pro, fpr) / limit


def test_pixel_figures_follow_their_definitions():
    rng = np.random.default_rng(0)
    masks = [np.zeros((24, 24), bool) for _ in range(4)]
    masks[0][2:6, 3:9] = masks[0][15:18, 15:16] = masks[1][10:20, 10:12] = masks[2][5:6, 5:6] = True
    maps = [(rng.random((24, 24)) + 0.7 * mask).astype(np.float32) for mask in masks]
    auroc, aupro, ap = pixel_figures(maps, masks)
    positive, negative = np.stack(maps)[np.stack(masks)], np.stack(maps)[~np.stack(masks)]
    assert auroc == pytest.approx((positive[:, None] > negative[None]).mean(), abs=1e-9)
    assert aupro == pytest.approx(plain_aupro(maps, masks), abs=2e-3)
    order = np.argsort(-np.stack(maps).ravel())
    hits = np.stack(masks).ravel()[order]
    assert ap == pytest.approx((np.cumsum(hits) / np.arange(1, hits.size + 1))[hits].mean(), abs=1e-9)


def test_a_perfect_map_is_perfect():
    masks = [np.zeros((16, 16), bool), np.zeros((16, 16), bool)]
    masks[1][4:8, 4:8] = True
    assert pixel_figures([mask.astype(np.float32) for mask in masks], masks) == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)


def test_smoothing_is_what_comes_before_the_threshold_without_morphology():
    assert smoothing(["mean:3", "open:3", "median:5", "threshold", "close:3"]) == ["mean:3", "median:5"]


def test_a_tiny_defect_does_not_vanish_from_a_smaller_mask(tmp_path):
    mask = np.zeros((512, 512), np.uint8)
    mask[101, 101] = 255
    write_image(tmp_path / "m.png", mask)
    assert read_mask(tmp_path / "m.png", (512, 512), (64, 64)).sum() == 1
    with pytest.raises(InputError, match="does not fit its image"):
        read_mask(tmp_path / "m.png", (100, 100), (64, 64))


def test_masks_of_zero_and_one_are_masks_too(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20] = 1
    write_image(tmp_path / "m.png", mask)
    assert read_mask(tmp_path / "m.png", (64, 64), (64, 64)).sum() == 100


def test_evaluate_reports_all_figures_and_null_rates_without_a_threshold(bundle, cloth, lineside):
    code, out, _ = lineside("evaluate", bundle, "--data", cloth, "--json")
    figures = json.loads(out)
    assert code == 0 and set(figures) >= KEYS
    assert figures["false_reject_rate"] is None and figures["escape_rate"] is None
    assert (figures["good"], figures["defective"]) == (24, 8)
    assert all(0 <= figures[key] <= 1 for key in ("image_auroc", "pixel_auroc", "aupro", "pixel_ap"))


def test_rates_are_those_of_the_threshold(calibrated, cloth, lineside):
    figures = json.loads(lineside("evaluate", calibrated, "--data", cloth, "--json")[1])
    assert figures["false_rejects"] == 24 - 23 + 0 or figures["false_rejects"] <= 2
    assert figures["false_reject_rate"] == figures["false_rejects"] / 24
    assert figures["escape_rate"] == figures["escapes"] / 8
    rows = json.loads(lineside("inspect", calibrated, cloth / "test" / "good", "--out", calibrated.parent / "o",
                               "--json")[1])
    assert figures["false_rejects"] == sum(row["verdict"] == "REJECT" for row in rows)


def test_a_set_without_truth_has_image_figures_only(calibrated, cloth, tmp_path, lineside):
    shutil.copytree(cloth / "test", tmp_path / "data" / "test")
    figures = json.loads(lineside("evaluate", calibrated, "--data", tmp_path / "data", "--json")[1])
    assert figures["pixel_auroc"] is None and figures["image_auroc"] is not None


def test_odd_sets_are_refused_by_name(cloth, tmp_path, bundle, lineside):
    code, _, err = lineside("evaluate", bundle, "--data", tmp_path)
    assert code == 2 and "no folder 'test'" in err
    shutil.copytree(cloth, tmp_path / "data")
    defect = next(p for p in sorted((tmp_path / "data" / "ground_truth").iterdir()))
    next(defect.iterdir()).unlink()
    with pytest.raises(InputError, match="has no mask"):
        labelled_images(tmp_path / "data")

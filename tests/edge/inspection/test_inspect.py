"""`lineside inspect`: verdicts, overlays, and images that cannot be inspected."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge.bundle.rule import Blob
from edge.images.files import read_image, write_image
from edge.inspection.inspector import Inspection
from edge.inspection.overlay import draw_overlay
from edge.part.verdict import Verdict


def test_each_image_gets_a_verdict_and_a_picture(calibrated, cloth, tmp_path, lineside):
    images = sorted((cloth / "test" / "hole").iterdir())
    code, out, _ = lineside("inspect", calibrated, *images, "--out", tmp_path / "o", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["image"] for row in rows] == [str(image) for image in images]
    for row in rows:
        assert set(row) == {"image", "verdict", "score", "threshold", "blobs", "overlay"}
        assert (row["verdict"] == "REJECT") == (row["score"] > row["threshold"]) == bool(row["blobs"])
        assert read_image(tmp_path / "o" / row["overlay"].split("/")[-1]).shape[2] == 3


def test_areas_are_told_in_square_millimetres_when_the_scale_is_known(calibrated, cloth, tmp_path, lineside):
    path = calibrated / "decision.toml"
    path.write_text(path.read_text().replace("# mm_per_px = 0.05", "mm_per_px = 0.5"))
    rows = json.loads(lineside("inspect", calibrated, cloth / "test", "--out", tmp_path / "o", "--json")[1])
    blobs = [blob for row in rows for blob in row["blobs"]]
    assert blobs and all(blob["area_mm2"] == pytest.approx(blob["area_px"] * 0.25, abs=0.01) for blob in blobs)
    code, out, _ = lineside("inspect", calibrated, cloth / "test", "--out", tmp_path / "o")
    assert code == 0 and "mm2" in out and "REJECT" in out and "PASS" in out


def test_without_a_threshold_there_is_a_score_and_no_verdict(bundle, cloth, tmp_path, lineside):
    code, out, _ = lineside("inspect", bundle, cloth / "test" / "hole", "--out", tmp_path / "o", "--json")
    assert code == 0 and all(row["verdict"] is None and row["threshold"] is None and row["score"] > 0
                             for row in json.loads(out))
    assert "lineside calibrate" in lineside("inspect", bundle, cloth / "test" / "hole", "--out", tmp_path / "o")[1]


def test_one_bad_image_does_not_keep_the_others_from_their_verdict(calibrated, cloth, tmp_path, lineside):
    good = cloth / "test" / "good" / "00000.png"
    colour = tmp_path / "colour.png"
    write_image(colour, np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    small = tmp_path / "small.png"
    write_image(small, read_image(good)[:30, :30])
    code, out, err = lineside("inspect", calibrated, tmp_path / "none.png", colour, small, good, "--out",
                              tmp_path / "o", "--json")
    assert code == 2 and [row["image"] for row in json.loads(out)] == [str(good)]
    assert "none.png" in err and "colour.png" in err and "3 channels" in err and "small.png" in err and "30x30" in err
    assert "3 of 4 images" in err


def test_an_empty_folder_and_an_out_that_is_a_file(calibrated, cloth, tmp_path, lineside):
    (tmp_path / "empty").mkdir()
    assert "0 images" in lineside("inspect", calibrated, tmp_path / "empty", "--out", tmp_path / "o")[2]
    (tmp_path / "file").write_text("")
    code, _, err = lineside("inspect", calibrated, cloth / "test" / "good", "--out", tmp_path / "file")
    assert code == 2 and "cannot write overlays" in err


def test_images_of_one_name_from_two_folders_get_two_pictures(calibrated, cloth, tmp_path, lineside):
    a, b = cloth / "test" / "good" / "00000.png", cloth / "test" / "good" / ".." / "good" / "00000.png"
    rows = json.loads(lineside("inspect", calibrated, a, b, "--out", tmp_path / "o", "--json")[1])
    assert len({row["overlay"] for row in rows}) == 2 == len(list((tmp_path / "o").iterdir()))


@pytest.mark.parametrize("shape", [(40, 50, 1), (300, 500, 3), (2000, 1000, 1)])
def test_the_overlay_shows_image_map_and_outline_side_by_side(shape):
    frame = np.full(shape, 90, np.uint8)
    grey = np.zeros((64, 64), np.float32)
    grey[20:40, 20:40] = 1
    inspection = Inspection(Verdict.REJECT, 1.0, 0.4, [Blob((10, 10, 20, 20), 400, 4.0, 1.0)], grey, grey, grey > 0.4)
    picture = draw_overlay(frame, inspection, "name")
    panel = (picture.shape[1] - 8) // 3
    assert 256 <= picture.shape[0] - 30 <= 1024
    image, heat, outlined = picture[30:, :panel], picture[30:, panel + 4:2 * panel + 4], picture[30:, 2 * panel + 8:]
    assert (image == 90).all()
    assert heat[heat.shape[0] // 2, heat.shape[1] // 2, 0] > heat[2, 2, 0]  # red in the middle, blue in the corner
    red = (outlined == (255, 40, 40)).all(axis=2)
    assert red.any() and not red[: picture.shape[0] // 8].any()

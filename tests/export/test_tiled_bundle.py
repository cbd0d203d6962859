"""Large frames in tiles, from the fit to the precisions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge.bundle.bundle import load_bundle
from edge.images.files import read_image, write_image


@pytest.fixture
def sheets(cloth, tmp_path):
    """Ten good sheets of three by two parts of the cloth, and five more to calibrate on."""
    good = sorted((cloth / "train" / "good").iterdir()) + sorted((cloth / "test" / "good").iterdir())
    rng = np.random.default_rng(0)
    for name in ("fit", "more"):
        (tmp_path / name).mkdir()
        for number in range(10 if name == "fit" else 5):
            parts = [read_image(good[i]) for i in rng.choice(len(good), 6, replace=False)]
            sheet = np.concatenate([np.concatenate(parts[:3], axis=1), np.concatenate(parts[3:], axis=1)])
            write_image(tmp_path / name / f"{number:02}.png", sheet)
    return tmp_path


def test_a_run_in_tiles_becomes_a_bundle_of_tiles(sheets, lineside):
    code, out, err = lineside("fit", "sidn", "--data", sheets / "fit", "--out", sheets / "run", "--steps", 1, "--size",
                              64, "--width", 1, "--tile", 96, "--json")
    assert code == 0, err
    record = json.loads((sheets / "run" / "run.json").read_text())
    assert record["tile"] == 96 and record["sizes"]["max_width"] == 96
    code, out, err = lineside("export", sheets / "run", "--out", sheets / "bundle")
    assert code == 0, err
    bundle = load_bundle(sheets / "bundle")
    assert (bundle.decision.tile, bundle.decision.overlap) == ([96, 96], 12) and bundle.card.frames.max_width == 96
    code, out, err = lineside("calibrate", sheets / "bundle", "--good", sheets / "more", "--false-reject-rate", 0.2)
    assert code == 0, err
    code, out, err = lineside("quantize", sheets / "bundle", "--good", sheets / "more", "--frames", 100, "--minutes", 0,
                              "--limits", "flips=1,contrast=1,auroc=1,aupro=1", "--json")
    assert code == 0, err
    assert "int8" in json.loads(out)["offered"]
    code, out, err = lineside("inspect", sheets / "bundle", sheets / "more" / "00.png", "--precision", "int8", "--out",
                              sheets / "found", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["verdict"] in ("PASS", "REJECT") and len(list((sheets / "found").iterdir())) == 1


def test_tiles_larger_than_an_image_or_too_small_are_refused(sheets, lineside):
    for tile, words in ((400, "smaller than a tile"), (40, "too small")):
        given = ["--data", sheets / "fit", "--out", sheets / "run", "--steps", 3, "--size", 64, "--tile", tile]
        code, _, err = lineside("fit", "sidn", *given)
        assert code == 2 and words in err

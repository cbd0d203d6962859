"""A new detector is one file and one line in the registry: a toy is fitted, exported and inspects parts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detectors import registry
from edge.bundle.bundle import load_bundle
from edge.images.files import list_images, read_image
from edge.inspection.inspector import Inspector
from tests.toys.detector import ToyDetector


@pytest.fixture
def toy(monkeypatch) -> str:
    monkeypatch.setitem(registry.DETECTORS, "toy", "tests.toys.detector:ToyDetector")
    return "toy"


def test_a_new_detector_goes_from_the_fit_to_the_inspector(toy, cloth, tmp_path, lineside):
    code, out, err = lineside("fit", toy, "--data", cloth, "--out", tmp_path / "run", "--steps", 40, "--json")
    assert code == 0, err
    assert json.loads(out)["backbone"] is None
    code, _, err = lineside("export", tmp_path / "run", "--out", tmp_path / "bundle")
    assert code == 0, err
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.card.detector == "toy" and bundle.card.input.channels == 1
    frame = read_image(list_images(cloth / "test" / "good")[0])
    marked = frame.copy()
    marked[32:64, 32:64] = 255
    with Inspector(bundle) as inspector:
        good, bad = (inspector.inspect(image, 0.5) for image in (frame, marked))
    assert np.isfinite(good.score) and bad.score > good.score


def test_the_fit_s_errors_speak_of_what_the_new_detector_declares(toy, cloth, tmp_path, lineside):
    words = ["fit", toy, "--data", cloth, "--out", tmp_path / "run", "--steps", 1]
    for extra, message in ((["--preset", "paper"], "expected edge"), (["--size", 72], "multiple of 16"),
                           (["--backbone-weights", tmp_path / "w.pt"], "toy uses no backbone")):
        code, _, err = lineside(*words, *extra)
        assert code == 2 and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_detector_that_declares_a_backbone_has_to_take_it():
    with pytest.raises(TypeError, match="override `use_backbone`"):
        type("Deaf", (ToyDetector,), {"backbone": "vgg16"})

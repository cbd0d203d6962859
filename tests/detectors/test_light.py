"""Parts that come in any light."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from detectors.fit import Budget, Settings, fit
from detectors.images import as_input
from detectors.light import MEAN, EvenLightDetector, evened, evened_pixels, light_varies
from detectors.registry import DETECTORS, detector_class
from detectors.run import read_run
from edge.bundle.bundle import load_bundle
from edge.images.files import list_images, read_image
from edge.inspection.inspector import Inspector
from export.onnx import export_run

RNG = np.random.default_rng(0)


def test_one_gain_for_all_pixels_and_channels_of_an_image():
    image = torch.from_numpy(RNG.uniform(0.1, 0.5, (3, 3, 8, 8)).astype(np.float32))
    result = evened(image)
    for before, after in zip(image.numpy(), result.numpy(), strict=True):
        np.testing.assert_allclose(after, np.clip(before * MEAN / before.mean(), 0, 1), rtol=1e-5)
    np.testing.assert_allclose(evened(0.3 * image), result, rtol=1e-5)


def test_black_and_white_stay_within_bounds():
    extremes = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.eye(8).expand(3, 8, 8)])
    result = evened(extremes)
    assert result.isfinite().all() and float(result.min()) >= 0 and float(result.max()) <= 1
    assert float(result[0].max()) == 0


def test_pixels_are_evened_as_the_graph_evens_them():
    pixels = RNG.integers(0, 120, (3, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(as_input(evened_pixels(pixels)), evened(as_input(pixels)), atol=0.51 / 255)


def test_only_good_images_of_very_different_brightness_are_evened():
    part = RNG.integers(60, 120, (20, 16, 16, 1)).astype(np.float32)
    def relit(low: float, high: float) -> np.ndarray:
        return np.rint(part * RNG.uniform(low, high, (20, 1, 1, 1))).astype(np.uint8)

    assert not light_varies(relit(0.9, 1.1))
    assert light_varies(relit(0.4, 1.6))


@pytest.mark.parametrize("name", sorted(n for n in DETECTORS if issubclass(detector_class(n), EvenLightDetector)))
def test_a_detector_sees_the_same_part_in_any_light(name):
    torch.manual_seed(0)
    cls = detector_class(name)
    arguments = cls.defaults() | {"width": 2, "even_light": True}
    if "size" in arguments:
        arguments["size"] = 64
    network = cls(**arguments).eval()
    image = torch.from_numpy(RNG.uniform(0.2, 0.6, (1, network.channels, 64, 64)).astype(np.float32))
    with torch.inference_mode():
        bright, dark = network(image), network(image * 0.4)
        assert bright.isfinite().all()
        torch.testing.assert_close(dark, bright, rtol=1e-3, atol=1e-4 * float(bright.max()))
        assert isinstance(network, EvenLightDetector)
        network.even_light = False
        assert (network(image) - network(image * 0.4)).abs().max() > 10 * (dark - bright).abs().max()


@pytest.fixture(scope="module")
def any_light(cloth, tmp_path_factory):
    """The cloth with every image taken in light of its own."""
    folder = tmp_path_factory.mktemp("light") / "cloth"
    folder.mkdir()
    for number, path in enumerate(list_images(cloth / "train" / "good")):
        frame = read_image(path).astype(np.float32) * (0.4, 0.7, 1.1)[number % 3]
        cv2.imwrite(str(folder / path.name), np.rint(frame.clip(0, 255)).astype(np.uint8))
    return folder


def test_a_fit_decides_by_the_good_images_and_its_bundle_does_the_same(any_light, cloth, tmp_path):
    record = fit(Settings("sidn", size=64, width=2), any_light, tmp_path / "run", Budget(steps=3))
    assert record.arguments["even_light"] is True and read_run(tmp_path / "run")[1].even_light
    assert json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]["even_light"] is True
    plain = fit(Settings("sidn", size=64, width=2), cloth, tmp_path / "plain", Budget(steps=3))
    assert plain.arguments["even_light"] is False
    export_run(tmp_path / "run", tmp_path / "bundle")
    frame = read_image(list_images(cloth / "train" / "good")[0])
    with Inspector(load_bundle(tmp_path / "bundle")) as inspector:
        bright = inspector.inspect(frame, None)
        dark = inspector.inspect((frame // 2), None)
    assert abs(bright.score - dark.score) < 0.1 * bright.score


def test_the_paper_s_preset_leaves_the_light_as_it_came(any_light, tmp_path):
    record = fit(Settings("sidn", "paper", size=64, width=2), any_light, tmp_path / "run", Budget(steps=1))
    assert record.arguments["even_light"] is False

"""Natural images for artificial defects: the packaged photographs, a folder of one's own, and crops of either."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.natural import NaturalImages
from edge.base.errors import InputError
from edge.images.files import write_image


@pytest.fixture(scope="module")
def packaged() -> NaturalImages:
    return NaturalImages()


def crops(natural: NaturalImages, seed: int, channels: int = 3, number: int = 12, height: int = 24,
          width: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([natural.crop(rng, height, width, channels) for _ in range(number)])


@pytest.fixture
def folder(tmp_path):
    """A colour photograph, a grey one in a sub-folder, and a file that is none."""
    rng = np.random.default_rng(0)
    write_image(tmp_path / "colour.png", rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    (tmp_path / "more").mkdir()
    write_image(tmp_path / "more" / "grey.png", rng.integers(0, 256, (70, 50), dtype=np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_images_of_the_size_and_channels_asked_for(packaged, channels):
    found = crops(packaged, 0, channels)
    assert found.shape == (12, 24, 40, channels) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1 and found.std() > 0.1


def test_packaged_photographs_are_many_and_some_have_colour(packaged):
    assert packaged.source == "scikit-image, 16 photographs"
    found = crops(packaged, 1, number=60)
    coloured = np.array([np.ptp(crop, axis=2).max() > 0.05 for crop in found])
    assert coloured.any() and not coloured.all()
    assert len(packaged._pixels) == 16 and max(max(image.shape) for image in packaged._pixels) <= 512


def test_the_same_generator_gives_the_same_crops(packaged):
    assert np.array_equal(crops(packaged, 5), crops(NaturalImages(), 5))
    assert not np.array_equal(crops(packaged, 5), crops(packaged, 6))
    assert len({crop.tobytes() for crop in crops(packaged, 5)}) == 12


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 200), (200, 3), (300, 300), (700, 640)])
def test_crops_may_be_small_long_or_larger_than_the_photograph(packaged, folder, height, width):
    for natural in (packaged, NaturalImages(folder)):
        for channels in (1, 3):
            assert crops(natural, 2, channels, 3, height, width).shape == (3, height, width, channels)


def test_a_folder_is_taken_with_its_sub_folders(folder):
    natural = NaturalImages(folder)
    assert natural.source == f"{folder}, 2 images"
    coloured = [bool(np.ptp(crop, axis=2).max() > 0.05) for crop in crops(natural, 0, number=20)]
    assert 0 < sum(coloured) < 20  # from both


def test_a_grey_photograph_stays_grey_over_three_channels(folder):
    (folder / "colour.png").unlink()
    found = crops(NaturalImages(folder), 0)
    assert np.array_equal(found[..., 0], found[..., 1]) and np.array_equal(found[..., 0], found[..., 2])
    assert found.std() > 0.01


def test_a_grey_crop_of_a_colour_photograph_has_its_luminance(tmp_path):
    write_image(tmp_path / "red.png", np.full((32, 32, 3), (255, 0, 0), np.uint8))
    found = crops(NaturalImages(tmp_path), 0, 1, 200)
    # Contrast and offset are random: on average, the value's distance to 0.5 is multiplied by 0.9, and the offset is 0.
    assert abs(found.mean() - (0.5 - 0.201 * 0.9)) < 0.03


def test_colours_contrast_and_mirroring_vary(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, 40).astype(np.uint8)
    write_image(tmp_path / "ramp.png", image)
    found = crops(NaturalImages(tmp_path), 0, number=60)
    slopes = found[:, :, -1].mean(1) - found[:, :, 0].mean(1)  # of each channel, from left to right
    assert (slopes > 0.05).any() and (slopes < -0.05).any()
    assert {int(np.argmax(np.abs(slope))) for slope in slopes} == {0, 1, 2}
    assert len({round(float(crop.mean()), 2) for crop in found}) > 10


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_a_folder_without_images_is_refused(tmp_path, lineside, cloth, what):
    path = tmp_path / "natural"
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    with pytest.raises(InputError, match="no folder" if what != "empty" else "no image"):
        NaturalImages(path)
    code, _, err = lineside("fit", "sidn", "--data", cloth, "--out", tmp_path / "run", "--steps", "1",
                            "--natural-images", path)
    assert code == 2 and str(path) in err and not (tmp_path / "run").exists()


def test_a_photograph_that_cannot_be_read_is_named(folder):
    (folder / "broken.png").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"broken\.png"):
        crops(NaturalImages(folder), 0)

"""Reading and preparing images."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from edge.base.errors import InputError
from edge.images.files import list_images, read_image, write_image
from edge.images.frames import FrameSizes, frame_hash, is_grey, prepare_frame

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (40, 50, 1), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("frame", [COLOUR, GREY], ids=["colour", "grey"])
def test_lossless_round_trip_keeps_channels_and_order(tmp_path, suffix, frame):
    write_image(tmp_path / f"a{suffix}", frame)
    read = read_image(tmp_path / f"a{suffix}")
    assert np.array_equal(read, frame) and read.flags.c_contiguous
    assert frame_hash(read) == frame_hash(frame)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.97])
def test_a_file_that_is_cut_short_is_no_image(tmp_path, suffix, share):
    write_image(tmp_path / f"a{suffix}", COLOUR)
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="cannot decode"):
        read_image(tmp_path / f"a{suffix}")


def test_what_no_camera_delivers_is_refused_by_name(tmp_path):
    cv2.imwrite(str(tmp_path / "alpha.png"), np.zeros((40, 40, 4), np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((40, 40), np.uint16))
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((40, 5), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    cv2.imwrite(str(tmp_path / "huge.png"), np.zeros((40, 40), np.uint8))
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # a header that promises 3.6 gigapixels
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "huge.png").write_bytes(data)
    for name, words in {"alpha.png": "4 channels", "deep.png": "uint16", "tiny.png": "5x40",
                        "text.png": "no whole image", "huge.png": "no whole image", "none.png": "No such file"}.items():
        with pytest.raises(InputError, match=words):
            read_image(tmp_path / name)


def test_folders_without_images(tmp_path):
    with pytest.raises(InputError, match="0 images"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="got nothing"):
        list_images(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="got a file"):
        list_images(tmp_path / "file")


def test_prepare_makes_grey_by_the_luma_weights_and_keeps_sizes():
    out = np.empty((40, 50, 1), np.uint8)
    prepare_frame(COLOUR, out)
    expected = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(out[..., 0] - expected).max() <= 1
    prepare_frame(GREY, out)
    assert np.array_equal(out, GREY)


@pytest.mark.parametrize("shape", [(20, 25), (80, 100), (33, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_resizes_a_flat_frame_to_the_same_level(shape, channels):
    out = np.empty((*shape, channels), np.uint8)
    prepare_frame(np.full((41, 53, 3), 77, np.uint8), out)
    assert (out == 77).all()


def test_frame_sizes_admit_what_was_fitted_and_name_what_does_not_fit():
    sizes = FrameSizes.of([(40, 50), (80, 50)], [is_grey(COLOUR), is_grey(COLOUR)])
    assert sizes == FrameSizes(50, 50, 40, 80, True)
    sizes.check(COLOUR)
    with pytest.raises(InputError, match=r"20x40 px.*fitted 50-50"):
        sizes.check(np.ascontiguousarray(COLOUR[:, :20]))
    with pytest.raises(InputError, match="1 channel"):
        sizes.check(GREY)
    saved_as_rgb = np.repeat(GREY, 3, axis=2)  # still grey
    grey_sizes = FrameSizes.of([(40, 50)] * 2, [is_grey(GREY), is_grey(saved_as_rgb)])
    grey_sizes.check(saved_as_rgb)
    with pytest.raises(InputError, match="3 channels"):
        grey_sizes.check(COLOUR)
    with pytest.raises(InputError, match="mixed"):
        FrameSizes.of([(40, 50)] * 2, [True, False])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, GREY)
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(OSError(28,
                                                                                         "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_image(path, COLOUR)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

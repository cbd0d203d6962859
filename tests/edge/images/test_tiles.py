"""Tiles: they cover the frame, their weights add up to one, and a defect on a seam is one blob."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.threshold import calibrate
from edge.base.errors import BundleError, EngineError, InputError
from edge.bundle.bundle import load_bundle
from edge.bundle.rule import Rule
from edge.images.files import read_image, write_image
from edge.images.tiles import Tiles
from edge.inspection.inspector import Inspector
from edge.part.verdict import Verdict


def blend(tiles, maps):
    blended = np.zeros(tiles.map_size, np.float32)
    for index in range(len(tiles)):
        tiles.add(index, maps(index), blended)
    return blended


@settings(deadline=None, max_examples=60)
@given(st.integers(64, 300), st.integers(64, 300), st.sampled_from([(64, 64), (48, 64), (64, 32)]), st.integers(0, 16),
       st.sampled_from([(64, 64), (32, 32), (16, 48)]))
def test_the_weights_add_up_to_one_and_every_tile_lies_in_the_frame(height, width, tile, overlap, map_size):
    tiles = Tiles((height, width), tile, overlap, map_size)
    assert blend(tiles, lambda _: np.ones(map_size, np.float32)) == pytest.approx(np.ones(tiles.map_size), abs=1e-5)
    frame = np.zeros((height, width, 1), np.uint8)
    for index in range(len(tiles)):
        view = tiles.cut(frame, index)
        assert view.shape == (*tile, 1)
        view += 1
    assert frame.min() >= 1
    assert 0 <= tiles.map_size[0] - height * map_size[0] / tile[0] < 1


@settings(deadline=None, max_examples=30)
@given(st.integers(64, 400), st.integers(64, 400), st.integers(0, 32))
def test_maps_that_agree_are_blended_to_what_they_show(height, width, overlap):
    tiles = Tiles((height, width), (64, 64), overlap, (64, 64))
    whole = np.random.default_rng(height).random((height, width, 1), np.float32)
    blended = blend(tiles, lambda index: tiles.cut(whole, index)[:, :, 0])
    assert blended == pytest.approx(whole[:, :, 0], abs=1e-5)


def test_neighbours_overlap_by_what_is_asked_for():
    tiles = Tiles((2048, 2448), (512, 512), 64, (256, 256))
    left = [tiles._axes[1].offsets[i + 1] - tiles._axes[1].offsets[i] for i in range(len(tiles._axes[1].offsets) - 1)]
    assert len(tiles) == 5 * 6 and max(left) <= 256 - 32 and tiles.map_size == (1024, 1224)


def test_a_frame_smaller_than_a_tile_is_refused():
    with pytest.raises(InputError, match="smaller than a tile"):
        Tiles((63, 500), (64, 64), 8, (64, 64))


def test_tiles_that_show_nothing_of_the_region_are_left_out():
    tiles = Tiles((256, 256), (64, 64), 0, (64, 64))
    region = np.zeros((256, 256), bool)
    region[70:80, 60:140] = True
    tiles.keep(region)
    assert len(tiles) == 3
    assert blend(tiles, lambda _: np.ones((64, 64), np.float32))[region] == pytest.approx(1)


def test_a_defect_on_a_seam_is_one_blob():
    tiles = Tiles((128, 224), (64, 64), 16, (64, 64))
    whole = np.zeros((128, 224, 1), np.float32)
    whole[60:68, 20:200] = 1
    blended = blend(tiles, lambda index: tiles.cut(whole, index)[:, :, 0])
    blobs, _ = Rule(["threshold"], map_size=tiles.map_size, frame_size=(128, 224)).blobs(blended, 0.5)
    assert [blob.box for blob in blobs] == [(20, 60, 180, 8)]


@pytest.fixture
def large(cloth, tmp_path):
    """Frames of three by two parts of the cloth: all good, and with one defective part."""
    good = sorted((cloth / "test" / "good").iterdir())
    bad = [path for path in sorted((cloth / "test").rglob("*.png")) if path.parent.name != "good"]
    rng = np.random.default_rng(0)
    folder = tmp_path / "large"
    for name, count in (("good", 12), ("bad", 4)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            parts = [read_image(good[i]) for i in rng.choice(len(good), 6, replace=False)]
            if name == "bad":
                parts[number] = read_image(bad[number])
            frame = np.concatenate([np.concatenate(parts[:3], axis=1), np.concatenate(parts[3:], axis=1)])
            write_image(folder / name / f"{number:02}.png", frame)
    return folder


def tile(bundle, text="tile = [96, 96]\noverlap = 24\n"):
    path = bundle / "decision.toml"
    path.write_text(text + path.read_text())


def test_a_bundle_judges_large_frames_in_tiles(bundle, large):
    with pytest.raises(InputError, match="size does not fit"):
        calibrate(load_bundle(bundle), large / "good", 0.1)
    tile(bundle)
    calibrate(load_bundle(bundle), large / "good", 0.1)
    loaded = load_bundle(bundle)
    threshold = loaded.calibrated_threshold("fp32", "openvino").value
    frames = [read_image(path) for path in sorted((large / "bad").iterdir())]
    found = {}
    for mode in ("single", "latency", "throughput"):
        with Inspector(loaded, threads=2, mode=mode) as inspector:
            jobs, results = [], []
            for frame in frames:
                if not inspector.room:
                    results.append(inspector.finish(jobs.pop(0), threshold))
                jobs.append(inspector.start(frame))
            results += [inspector.finish(job, threshold) for job in jobs]
            found[mode] = [result.score for result in results]
    assert found["latency"] == pytest.approx(found["single"], rel=1e-4)
    assert found["throughput"] == pytest.approx(found["single"], rel=1e-4)
    assert results[0].raw.shape == (128, 192)
    with Inspector(loaded) as inspector:
        alone = inspector.inspect(frames[0], threshold)
        tiles = loaded.tiles(frames[0].shape[:2])
        by_hand = np.zeros(tiles.map_size, np.float32)
        for index in range(len(tiles)):
            tiles.add(index, inspector.raw_map(tiles.cut(frames[0], index)), by_hand)
        assert alone.raw == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
        assert (alone.verdict is Verdict.REJECT) == (alone.score > threshold)


def test_a_tile_that_fails_is_told_of_its_frame_alone(bundle, large, monkeypatch):
    tile(bundle, "tile = [48, 48]\noverlap = 12\n")
    frames = [read_image(path) for path in sorted((large / "good").iterdir())[:4]]
    with Inspector(load_bundle(bundle), threads=2, mode="latency") as inspector:
        expected = [inspector.inspect(frame, None).score for frame in frames]
        assert len(inspector.check(frames[0])[1]) > 8  # more than are blended together
        slot = inspector._free[-4]
        monkeypatch.setattr(slot, "wait", lambda timeout: (_ for _ in ()).throw(EngineError("a tile failed")))
        first = inspector.start(frames[0])
        with pytest.raises(EngineError, match="a tile failed"):
            inspector.finish(first, None)
        monkeypatch.undo()
        assert [inspector.inspect(frame, None).score for frame in frames] == pytest.approx(expected, rel=1e-5)
        assert inspector.room == 2


def test_grey_stays_grey_in_tiles_and_a_tile_too_large_is_refused(bundle, large):
    tile(bundle)
    frame = read_image(next((large / "good").iterdir()))
    with Inspector(load_bundle(bundle)) as inspector:
        assert inspector._free[0].input.shape[3] == 1
        with pytest.raises(InputError, match="channel"):
            inspector.inspect(np.ascontiguousarray(np.repeat(frame, 3, axis=2) // np.array([1, 2, 1], np.uint8)), None)
        with pytest.raises(InputError, match="smaller than a tile"):
            inspector.inspect(np.ascontiguousarray(frame[:80]), None)


def test_a_rule_with_other_tiles_needs_another_threshold(bundle, large, tmp_path):
    tile(bundle)
    calibrate(load_bundle(bundle), large / "good", 0.1)
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    (other / "decision.toml").write_text((other / "decision.toml").read_text().replace("overlap = 24", "overlap = 12"))
    with pytest.raises(BundleError, match="changed after it was calibrated"):
        load_bundle(other).calibrated_threshold("fp32", "openvino")


@pytest.mark.parametrize("text", ["tile = [96, 96]\n", "tile = [96, 96]\noverlap = 49\n", "tile = [96]\noverlap = 4\n"])
def test_tiles_that_cannot_be_are_refused(bundle, text):
    tile(bundle, text)
    with pytest.raises(BundleError, match="tile"):
        load_bundle(bundle)

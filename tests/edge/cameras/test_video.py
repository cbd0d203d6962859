"""Camera `video`: files, frame by frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.base.errors import CameraError
from edge.bundle.bundle import load_bundle
from edge.cameras.kinds import make_camera
from edge.cameras.video import opencv as video
from edge.cameras.video.section import VideoSection
from edge.images.files import list_images
from edge.inspection.inspector import Inspector
from edge.part.verdict import Cause
from tests.rig import finish, reconcile

SIZE = (48, 64)


def write_video(path: Path, images) -> Path:
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    assert writer.isOpened()
    for image in images:
        writer.write(image)
    writer.release()
    return path


def levels(count: int) -> list[np.ndarray]:
    """Frames that can be told by their blue: 0, 20, 40, ... in BGR."""
    return [np.full((*SIZE, 3), (20 * number, 100, 200), np.uint8) for number in range(count)]


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_video(tmp_path / "clip.avi", levels(5))


def opened(folder: Path, source: str, **keys):
    camera = make_camera([VideoSection(kind="video", source=source, **keys)], folder)
    camera.open()
    return camera


def play(camera, count: int):
    frames = []
    for trigger in range(11, 11 + count):
        camera.expose(trigger, 2 * trigger, 7, 1.5)
        frames.append(camera.next(5.0))
    return frames


def number_of(frame) -> int:
    return round(float(frame.image[..., -1].mean()) / 20)


def test_a_file_plays_one_frame_per_trigger_in_order_and_reports_its_end(clip):
    camera = opened(clip.parent, clip.name)
    assert camera.next(0.0) is None
    frames = play(camera, 7)
    camera.close()
    assert [number_of(frame) for frame in frames[:5]] == [0, 1, 2, 3, 4]
    numbers = [(frame.trigger, frame.part, frame.frame_id) for frame in frames]
    assert numbers == [(11 + i, 22 + 2 * i, i) for i in range(7)]
    assert {(frame.encoder, frame.host_time) for frame in frames} == {(7, 1.5)} and frames[3].source == "clip.avi:3"
    for frame in frames[5:]:
        assert frame.image is None and frame.cause is Cause.NO_FRAME and "after 5 frames" in frame.text
        assert "loop = true" in frame.text


def test_a_file_starts_again_with_loop(clip):
    camera = opened(clip.parent, clip.name, loop=True)
    frames = play(camera, 12)
    camera.close()
    assert [number_of(frame) for frame in frames] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert [frame.frame_id for frame in frames] == list(range(12)) and frames[6].source == "clip.avi:1"
    assert camera.counters() == {}


def test_colour_is_rgb_and_grey_has_one_channel(clip):
    for grey, channels in ((False, 3), (True, 1)):
        camera = opened(clip.parent, clip.name, grey=grey)
        image = play(camera, 1)[0].image
        camera.close()
        assert image.shape == (*SIZE, channels) and image.dtype == np.uint8 and image.flags.c_contiguous
        expected = [200, 100, 0] if not grey else [0.299 * 200 + 0.587 * 100]
        assert np.abs(image.reshape(-1, channels).mean(0) - expected).max() < 4


def test_a_source_that_delivers_grey_stays_grey():
    for shape in (SIZE, (*SIZE, 1)):
        assert video.as_frame(np.zeros(shape, np.uint8), False, "it").shape == (*SIZE, 1)
    with pytest.raises(CameraError, match="got 2 channels of uint8"):
        video.as_frame(np.zeros((*SIZE, 2), np.uint8), False, "it")
    with pytest.raises(CameraError, match="uint16"):
        video.as_frame(np.zeros(SIZE, np.uint16), False, "it")


@pytest.mark.parametrize(("properties", "words"), [
    ({"FRAME_WIDHT": 640}, "unknown property 'FRAME_WIDHT'.*'FRAME_WIDTH'"), ({"frame_width": 640}, "'FRAME_WIDTH'"),
    ({"FRAME_WIDTH": 640}, "does not accept FRAME_WIDTH = 640; got 64"),
])
def test_properties_that_are_unknown_or_have_no_effect_are_errors(clip, properties, words):
    with pytest.raises(CameraError, match=words):
        opened(clip.parent, clip.name, properties=properties)


def test_a_property_that_the_source_has_is_set(clip):
    camera = opened(clip.parent, clip.name, properties={"FRAME_WIDTH": 64, "POS_FRAMES": 2})
    assert number_of(play(camera, 1)[0]) == 2
    camera.close()


def test_files_that_are_missing_or_no_video_do_not_start(tmp_path, clip):
    (tmp_path / "text.avi").write_bytes(b"no video " * 100)
    (tmp_path / "empty.avi").touch()
    (tmp_path / "head.avi").write_bytes(clip.read_bytes()[:600])
    for name, words in (("text.avi", "cannot open"), ("empty.avi", "cannot open"),
                        ("head.avi", "cannot open|has no frame"), ("nowhere.avi", "no video at .*got nothing"),
                        (".", "got a folder")):
        with pytest.raises(CameraError, match=words):
            opened(tmp_path, name)


def test_a_file_that_is_cut_plays_what_it_has(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (5, 240, 320, 3), np.uint8)
    data = write_video(tmp_path / "whole.avi", list(noise)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 6 // 10])
    camera = opened(tmp_path, "cut.avi")
    frames = play(camera, 5)
    camera.close()
    assert frames[0].image is not None and frames[4].cause is Cause.NO_FRAME


def test_a_file_that_vanishes_makes_parts_without_a_frame(tmp_path, clip):
    camera = opened(tmp_path, clip.name, loop=True)
    clip.unlink()
    frames = play(camera, 7)
    camera.close()
    assert [frame.cause for frame in frames] == [None] * 5 + [Cause.CAMERA] * 2 and "clip.avi" in frames[5].text


def test_a_line_inspects_a_video_frame_by_frame(line, cloth_parts, lineside):
    images = [cv2.imread(str(path)) for path in list_images(cloth_parts)]
    clip = write_video(line.folder / "clip.avi", images)
    path = line.folder / "line.toml"
    text = path.read_text()
    begin, end = text.index("[camera]"), text.index("[plc]")
    path.write_text(f'{text[:begin]}[camera]\nkind = "video"\nsource = "clip.avi"\ngrey = true\n{text[end:]}')
    plc = line.plc(len(images) + 2)
    ledger, err = finish(line.run("--parts", str(len(images) + 2)))
    summary, _ = finish(plc)
    rows = line.rows()
    reconcile(ledger, summary, rows)
    assert ledger["causes"] == {"no-frame": 2} and "ran dry" in err
    bundle = load_bundle(line.folder / "bundle")
    threshold = bundle.calibrated_threshold("fp32", "openvino").value
    camera = opened(line.folder, clip.name, grey=True)
    with Inspector(bundle, threads=1) as inspector:
        for number, row in enumerate(rows[:-2]):
            assert row["image"] == f"clip.avi:{number}"
            inspected = inspector.inspect(play(camera, 1)[0].image, threshold)
            assert (row["verdict"], row["score"]) == (inspected.verdict.value, inspected.score)
    camera.close()
    # More frames than there are: a check repeats the file.
    code, _, err = lineside("check", path, "--rate", 5, "--frames", 50, "--json")
    assert code in (0, 1), err

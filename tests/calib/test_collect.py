"""Calibration sets: frames that cover all, no copies, and the most unusual ones first."""

from __future__ import annotations

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest

from calib.collect import collect, read_set
from calib.unlike import Embedding, k_centres, stand_out, unlike_cells, unlikeness, whitened
from edge.base.errors import InputError
from edge.images.files import list_images, read_image, write_image
from edge.images.frames import frame_hash
from simulation.render.surface import Surface

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def planted(cloth, tmp_path_factory):
    """24 good frames of cloth, and two with holes among them."""
    folder = tmp_path_factory.mktemp("planted") / "frames"
    folder.mkdir()
    for number, path in enumerate(list_images(cloth / "train" / "good")):
        shutil.copy(path, folder / f"frame-{number:02d}.png")
    for number, path in enumerate(list_images(cloth / "test" / "hole")):
        shutil.copy(path, folder / f"frame-{5 * number:02d}-bad.png")
    return folder


@pytest.fixture(scope="module")
def collected(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("set") / "set"
    collect(planted, out, 20)
    return out


def test_planted_defects_come_first_and_stand_out(collected):
    made = read_set(collected)
    assert len(made.frames) == 20 and not made.reviewed
    assert [frame.source.endswith("-bad.png") for frame in made.frames[:3]] == [True, True, False]
    assert all(frame.stands_out for frame in made.frames[:2]) and sum(frame.stands_out for frame in made.frames) <= 4
    assert [frame.unlike for frame in made.frames] == sorted((frame.unlike for frame in made.frames), reverse=True)


def test_the_ring_is_around_the_defect(collected, cloth):
    masks = {frame_hash(read_image(path)): cloth / "ground_truth" / "hole" / f"{path.stem}_mask.png"
             for path in list_images(cloth / "test" / "hole")}
    for frame in read_set(collected).frames[:2]:
        mask = read_image(masks[frame.sha256])[..., 0] > 0
        near = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8))
        assert near[int(frame.place[1] * mask.shape[0]), int(frame.place[0] * mask.shape[1])]


def test_manifest_and_frames_agree_and_a_changed_frame_is_named(collected, planted, tmp_path):
    manifest = json.loads((collected / "manifest.json").read_text())
    assert manifest["source"] == str(planted) and manifest["looked_at"] == 26
    for frame in manifest["frames"]:
        for path in (collected / "good" / frame["file"], planted / frame["source"]):
            assert frame_hash(read_image(path)) == frame["sha256"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}",
                            frame["time"]) and frame["camera"] == str(planted)
    copy = shutil.copytree(collected, tmp_path / "set")
    write_image(copy / "good" / "0007.png", read_image(copy / "good" / "0008.png"))
    with pytest.raises(InputError, match=r"0007\.png is not the collected frame"):
        read_set(copy)


def test_the_page_shows_every_frame_in_order_and_needs_no_other_file(collected):
    page = (collected / "index.html").read_text()
    assert [int(n) for n in re.findall(r"type=checkbox value=(\d+)", page)] == list(range(1, 21))
    assert page.count("<img src='data:image/jpeg;base64,") == page.count("src=") == 20 and "href" not in page
    assert "http" not in page
    places = [page.index(text) for text in ("is this a good part?", "value=1>", "The others", "value=20>")]
    assert places == sorted(places)


def test_copies_and_near_duplicates_are_left_out(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    web = Surface("woven", 3, 256)
    for number in range(8):
        frame = web.part(5 * number).frame
        write_image(folder / f"{number}-a.png", frame)
        write_image(folder / f"{number}-b.png", frame)
        noisy = np.rint(np.clip(frame + RNG.normal(0, 1, frame.shape), 0, 255)).astype(np.uint8)
        write_image(folder / f"{number}-c.png", noisy)
    made = collect(folder, tmp_path / "set", 24)
    assert made.copies == 8 and made.near_duplicates == 8 and len(made.frames) == 8
    assert {frame.source[0] for frame in made.frames} == set("01234567")


def test_centres_cover_clusters_before_they_repeat_one():
    clusters = RNG.normal(0, 1, (5, 1, 4, 4, 8)) * 5 + RNG.normal(0, 0.1, (5, 10, 4, 4, 8))
    order = k_centres(clusters.reshape(50, 4, 4, 8).astype(np.float32), 50, 0.0)
    assert {index // 10 for index in order[:5]} == set(range(5)) and sorted(order) == list(range(50))
    assert len(k_centres(clusters.reshape(50, 4, 4, 8).astype(np.float32), 50, 0.2)) == 5


def test_whitened_features_do_not_correlate():
    mixed = (RNG.normal(0, 1, (500, 6)) @ RNG.normal(0, 1, (6, 6))).reshape(5, 10, 10, 6).astype(np.float32)
    flat = whitened(mixed).reshape(-1, 6)
    moments = flat.T @ flat / len(flat)
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 1e-4 and np.diag(moments).min() > 0
    assert np.diag(moments).max() < 1.0001


def test_what_occurs_in_one_frame_alone_is_unlike():
    features = RNG.normal(0, 1, (12, 32, 32, 4)).astype(np.float32)
    features[7, 10:14, 20:24] += 8
    cells = unlike_cells(features)
    values = unlikeness(cells)
    assert int(values.argmax()) == 7 and stand_out(values).tolist() == [index == 7 for index in range(12)]
    row, column = np.unravel_index(int(cells[7].argmax()), (32, 32))
    assert 9 <= row <= 14 and 19 <= column <= 24


def test_light_alone_is_not_unlike(cloth):
    frame = read_image(list_images(cloth / "train" / "good")[0])
    embedding = Embedding(threads=1)
    bright, dark, other = (embedding(x) for x in (frame, frame // 2,
                                                  read_image(list_images(cloth / "train" / "good")[1])))
    embedding.close()
    assert bright.shape == (32, 32, 64)
    assert np.abs(bright - dark).mean() < 0.2 * np.abs(bright - other).mean()


def test_a_person_says_which_stay(collected, tmp_path, lineside):
    folder = shutil.copytree(collected, tmp_path / "set")
    code, out, err = lineside("collect", "--out", folder, "--leave-out", "1,2", "--json")
    assert code == 0, err
    assert json.loads(out)["frames"] == 18 and json.loads(out)["reviewed"] is True
    made = read_set(folder)
    assert made.reviewed and not any("-bad" in frame.source for frame in made.frames)
    assert sorted(p.name for p in (folder / "left-out").iterdir()) == ["0001.png", "0002.png"]
    assert "value=1>" not in (folder / "index.html").read_text()
    assert "It has been reviewed" in (folder / "index.html").read_text()
    assert lineside("collect", "--out", folder, "--leave-out", "none")[0] == 0
    assert len(list_images(folder / "good")) == 18, "so that --good of calibrate takes the set"


def test_a_line_s_camera_is_looked_at_without_its_plc(planted, tmp_path, lineside):
    (tmp_path / "line.toml").write_text(f"""
[line]
name = "felt"
bundle = "none-is-needed"
[camera]
kind = "folder"
path = "{planted}"
loop = true
[plc]
kind = "frames"
port = "none"
[belt]
travel_ms = 600
""")
    code, out, err = lineside("collect", "--from", tmp_path / "line.toml", "--out", tmp_path / "set", "--frames", 6,
                              "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["looked_at"] == 30 and figures["copies"] == 4 and figures["frames"] == 6
    assert {frame.camera for frame in read_set(tmp_path / "set").frames} == {"felt: folder"}


@pytest.mark.parametrize(("options", "words"), [
    ([], "--from LINE.toml|DIR, or --leave-out"), (["--from", "{planted}", "--leave-out", "1"], "got both"),
    (["--from", "{planted}", "--frames", "1"], "2 or more"), (["--from", "nowhere"], "no folder"),
    (["--leave-out", "1"], "not a calibration set"),
    (["--leave-out", "one"], "numbers of frames"),
])
def test_wrong_use_is_one_message_and_leaves_nothing(planted, tmp_path, lineside, options, words):
    given = [option.replace("{planted}", str(planted)) for option in options]
    code, _, err = lineside("collect", "--out", tmp_path / "set", *given)
    assert code == 2 and words in err and list(tmp_path.iterdir()) == []


def test_a_review_that_was_stopped_is_done_by_the_same_command(collected, tmp_path, lineside, monkeypatch):
    folder = shutil.copytree(collected, tmp_path / "set")
    with monkeypatch.context() as broken:
        broken.setattr("calib.collect.write_page", lambda *_: (_ for _ in ()).throw(OSError(28,
                                                                                            "No space left on device")))
        code, _, err = lineside("collect", "--out", folder, "--leave-out", "1,2")
    assert code == 2 and "No space left" in err and "same command" in err
    assert lineside("collect", "--out", folder, "--leave-out", "1,2")[0] == 0
    assert len(read_set(folder).frames) == 18 and len(list_images(folder / "left-out")) == 2


def test_a_still_scene_is_no_set(tmp_path, lineside):
    folder = tmp_path / "frames"
    folder.mkdir()
    frame = Surface("woven", 3, 256).part(0).frame.repeat(4, axis=0).repeat(4, axis=1)
    for number in range(4):
        frame[number, number] ^= 1  # nothing that is left in features
        write_image(folder / f"{number}.png", frame)
    code, _, err = lineside("collect", "--from", folder, "--out", tmp_path / "set")
    assert code == 2 and "too few different frames" in err and not (tmp_path / "set").exists()


def test_names_in_any_encoding_and_large_folders(planted, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, path in enumerate(list_images(planted)[:12]):
        os.link(path, os.fsencode(folder) + b"/Pr\xfcfling-%02d.png" % number)
    made = collect(folder, tmp_path / "set", 2)
    assert made.looked_at == 10 and len(made.frames) == 2
    assert read_set(tmp_path / "set").frames[0].source.startswith("Pr\udcfcfling")
    assert "Pr?fling" in (tmp_path / "set" / "index.html").read_text()


def test_a_set_is_not_written_over_and_not_emptied(collected, planted, lineside):
    assert "exists already" in lineside("collect", "--from", planted, "--out", collected)[2]
    assert "no frame 99" in lineside("collect", "--out", collected, "--leave-out", "99")[2]
    everything = ",".join(str(number) for number in range(1, 21))
    assert "at least two frames" in lineside("collect", "--out", collected, "--leave-out", everything)[2]
    assert len(read_set(collected).frames) == 20

"""Fitting: the split, what a fit leaves behind, repeatability, and ends of all kinds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from detectors.batches import make_batch
from detectors.fit import Budget, Settings, fit
from detectors.images import load_good_images, near_duplicate_groups, phase_spectrum, split
from detectors.natural import NaturalImages
from detectors.run import read_run
from detectors.sidn import Sidn
from edge.base.errors import InputError
from edge.images.files import read_image, write_image
from simulation.render.surface import Surface


def test_about_a_fifth_is_set_aside_and_the_seed_says_which(cloth):
    first, again, other = (load_good_images(cloth, 64, 64, 1, seed) for seed in (0, 0, 1))
    assert len(first.held_out) == round(0.2 * 24) and len(first.fitted) == 24 - len(first.held_out) == len(first.pixels)
    assert first.held_out == again.held_out != other.held_out
    assert not {i.sha256 for i in first.held_out} & {i.sha256 for i in first.fitted}
    assert first.fingerprint == other.fingerprint


def test_near_duplicates_stay_together(cloth, tmp_path):
    """Four copies of each of five images, in other light, shifted, noisy: no group may be divided."""
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted((cloth / "train" / "good").iterdir())[:10]):
        frame = read_image(path).astype(np.float32)
        for copy in range(4 if number < 5 else 1):
            changed = np.roll(frame, (copy, copy), (0, 1)) * (1 + 0.04 * copy) + rng.normal(0, 2, frame.shape)
            write_image(tmp_path / f"{number}-{copy}.png", np.clip(changed, 0, 255).astype(np.uint8))
    for seed in range(8):
        good = load_good_images(tmp_path, 64, 64, 1, seed)
        sides = {}
        for side, images in (("fitted", good.fitted), ("held out", good.held_out)):
            for image in images:
                sides.setdefault(image.name[0], set()).add(side)
        assert all(len(found) == 1 for found in sides.values()), sides
        assert good.held_out


@pytest.mark.parametrize(("parts", "shots"), [(2, 12), (3, 12), (5, 6)])
def test_few_parts_photographed_often_stay_together(cloth, parts, shots):
    rng = np.random.default_rng(0)
    frames = [read_image(path).astype(np.float32) for path in sorted((cloth / "train" / "good").iterdir())[:parts]]
    shifted = [np.roll(frame, rng.integers(-2, 3, 2), (0, 1)) + rng.normal(0, 2, frame.shape) for frame in frames
               for _ in range(shots)]
    spectra = [phase_spectrum(np.clip(frame, 0, 255).astype(np.uint8)) for frame in shifted]
    groups = near_duplicate_groups(np.stack(spectra))
    assert sorted(map(sorted, groups)) == [list(range(shots * k, shots * (k + 1))) for k in range(parts)]


def test_objects_that_look_alike_are_no_near_duplicates():
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:96, :96]
    disc = 180.0 * ((ys - 48) ** 2 + (xs - 48) ** 2 < 900)
    frames = [np.clip(disc + 30 + rng.normal(0, 8, (96, 96)), 0, 255).astype(np.uint8)[..., None] for _ in range(12)]
    assert len(near_duplicate_groups(np.stack([phase_spectrum(frame) for frame in frames]))) == 12


def test_split_takes_whole_groups_and_refuses_one_single_view():
    groups = [[0, 1, 2, 3], [4], [5], [6, 7], [8, 9]]
    for seed in range(20):
        held_out = set(split(groups, seed))
        assert all(set(group) <= held_out or not set(group) & held_out for group in groups) and 1 <= len(held_out) <= 2
    with pytest.raises(InputError, match="near-duplicates"):
        split([[0, 1, 2, 3, 4]], 0)


def test_exact_copies_count_once(cloth, tmp_path):
    for path in sorted((cloth / "train" / "good").iterdir())[:6]:
        shutil.copy(path, tmp_path / path.name)
        shutil.copy(path, tmp_path / f"copy-{path.name}")
    good = load_good_images(tmp_path, 64, 64, 1, 0)
    assert len(good.fitted) + len(good.held_out) == 6


def test_a_batch_depends_on_seed_and_step_alone(cloth):
    pixels = load_good_images(cloth, 64, 64, 1, 0).pixels
    network = Sidn(width=1)
    one, same, other = (make_batch(network, network.phases(64)[0], pixels, NaturalImages(), (5, 0, step))
                        for step in (3, 3, 4))
    assert torch.equal(one.image, same.image) and torch.equal(one.mask, same.mask)
    assert not torch.equal(one.image, other.image)
    assert one.clean.shape == one.image.shape == one.mask.shape == (8, 1, 64, 64)
    assert torch.equal(one.clean[one.mask.amax((1, 2, 3)) == 0], one.image[one.mask.amax((1, 2, 3)) == 0])
    assert not torch.equal(one.clean, one.image)


def test_the_same_seed_and_steps_give_the_same_weights(cloth, fitted_run, tmp_path):
    fit(Settings("sidn", seed=1, size=64, width=2), cloth, tmp_path / "again", Budget(steps=30))
    fit(Settings("sidn", seed=2, size=64, width=2), cloth, tmp_path / "other", Budget(steps=30))
    first, again, other = (read_run(run)[1].state_dict()
                           for run in (fitted_run, tmp_path / "again", tmp_path / "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_run_holds_record_curves_and_a_picture(fitted_run):
    record, network = read_run(fitted_run)
    assert (record.detector, record.steps, record.seed, record.interrupted) == ("sidn", 30, 1, False)
    assert len((fitted_run / "loss.csv").read_text().splitlines()) == 31
    assert cv2.imread(str(fitted_run / "loss.png")).shape[0] > 300
    assert not network.training
    losses = [float(line.split(",")[1]) for line in (fitted_run / "loss.csv").read_text().splitlines()[1:]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_minutes_bound_a_fit(cloth, tmp_path):
    start = time.monotonic()
    record = fit(Settings("sidn", size=64, width=1), cloth, tmp_path / "run", Budget(minutes=0.05))
    assert record.steps >= 1 and 2.5 <= 60 * record.minutes <= 10 and time.monotonic() - start < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fit_leaves_a_usable_run(cloth, tmp_path, number, lineside):
    process = subprocess.Popen(
        [sys.executable, "-m", "lineside", "fit", "sidn", "--data", str(cloth), "--out", str(tmp_path / "run"),
         "--minutes", "5",
         "--size", "64", "--width", "1"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert "step" in line and "loss" in line and "s left" in line
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "interrupted after" in out and "Traceback" not in err
    assert read_run(tmp_path / "run")[0].interrupted
    assert lineside("export", tmp_path / "run", "--out", tmp_path / "bundle")[0] == 0


@pytest.mark.parametrize(("arguments", "words"), [
    (["sdin", "--data", "{cloth}"], "sidn"),
    (["sidn", "--data", "{tmp}/none"], "no folder"), (["sidn", "--data", "{tmp}"], "no image"),
    (["sidn", "--data", "{cloth}", "--minutes", "1", "--steps", "5"], "either"),
    (["sidn", "--data", "{cloth}", "--minutes", "0"], "positive"),
    (["sidn", "--data", "{cloth}", "--steps", "-1"], "positive"),
    (["sidn", "--data", "{cloth}", "--size", "100"], "multiple of 16"),
    (["sidn", "--data", "{cloth}", "--width", "0"], "width"), (["sidn", "--data", "{cloth}", "--seed", "-1"], "seed"),
])
def test_wrong_input_is_one_message_and_leaves_nothing(cloth, tmp_path, lineside, arguments, words):
    code, _, err = lineside("fit", *[a.format(cloth=cloth, tmp=tmp_path) for a in arguments], "--out", tmp_path / "run")
    assert code == 2 and words in err
    assert list(tmp_path.iterdir()) == []


def test_images_that_do_not_go_together_are_named(cloth, tmp_path, lineside):
    data = tmp_path / "data"
    shutil.copytree(cloth / "train" / "good", data)
    (data / "broken.png").write_bytes(b"x" * 100)
    assert "broken.png" in lineside("fit", "sidn", "--data", data, "--out", tmp_path / "run", "--steps", "1")[2]
    (data / "broken.png").unlink()
    write_image(data / "colour.png", np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    assert "mixed" in lineside("fit", "sidn", "--data", data, "--out", tmp_path / "run", "--steps", "1")[2]
    for path in sorted(data.iterdir())[:-3]:
        path.unlink()
    assert "at least 4" in lineside("fit", "sidn", "--data", data, "--out", tmp_path / "run", "--steps", "1")[2]


def test_an_existing_run_is_not_written_over(fitted_run, cloth, lineside):
    before = (fitted_run / "weights.pt").read_bytes()
    code, _, err = lineside("fit", "sidn", "--data", cloth, "--out", fitted_run, "--steps", "1")
    assert code == 2 and "exists already" in err and (fitted_run / "weights.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["run.json", "weights.pt"])
def test_a_damaged_run_is_refused(fitted_run, tmp_path, lineside, name):
    shutil.copytree(fitted_run, tmp_path / "run")
    data = (tmp_path / "run" / name).read_bytes()
    (tmp_path / "run" / name).write_bytes(data[: len(data) // 2])
    code, _, err = lineside("export", tmp_path / "run", "--out", tmp_path / "bundle")
    assert code == 2 and "not a complete run" in err and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("size", [144, 208])
def test_sizes_whose_half_is_no_multiple_of_the_stride_can_be_fitted(cloth, tmp_path, size):
    assert fit(Settings("sidn", size=size, width=1), cloth, tmp_path / "run", Budget(steps=1)).height == size


def test_a_disk_that_is_full_at_the_end_of_a_fit_is_one_message(cloth, tmp_path, monkeypatch, lineside):
    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr("detectors.run.torch.save", full)
    code, _, err = lineside("fit", "sidn", "--data", cloth, "--out", tmp_path / "run", "--steps", "1", "--size", "64",
                            "--width", "1")
    assert code == 2 and "cannot be written" in err and list(tmp_path.iterdir()) == []


def test_a_run_keeps_all_arguments_of_its_network(fitted_run):
    arguments = read_run(fitted_run)[0].arguments
    assert arguments["width"] == 2 and arguments["clusters"] == 12 and arguments["background_weight"] == 0.1


def test_defects_beside_good_images_are_not_fitted_on(cloth, tmp_path, lineside):
    shutil.copytree(cloth / "train" / "good", tmp_path / "data" / "good")
    shutil.copytree(cloth / "test" / "hole", tmp_path / "data" / "bad")
    assert not {"bad"} & {i.name.split("/")[0] for i in load_good_images(tmp_path / "data", 64, 64, 1, 0).fitted}
    (tmp_path / "data" / "good").rename(tmp_path / "data" / "fine")
    code, _, err = lineside("fit", "sidn", "--data", tmp_path / "data", "--out", tmp_path / "run", "--steps", "1")
    assert code == 2 and "bad, fine" in err


def test_fit_tells_its_figures_as_json(cloth, tmp_path, lineside):
    code, out, _ = lineside("fit", "sidn", "--data", cloth, "--out", tmp_path / "run", "--steps", "2", "--size", "64",
                            "--width", "1",
                            "--json")
    figures = json.loads(out)
    assert code == 0 and figures["steps"] == 2 and figures["images_fitted"] + figures["images_held_out"] == 24


def test_turned_parts_can_be_set_aside():
    """Each is like the few at nearly the same angle: a chain through all of them, and no group of near-duplicates."""
    surface = Surface("printed", 5, 96, turned=True)
    groups = near_duplicate_groups(np.stack([phase_spectrum(surface.part(index).frame) for index in range(60)]))
    assert len(groups) >= 5 and 5 <= len(split(groups, 0)) <= 12


def test_parts_in_a_fixture_can_be_set_aside():
    surface = Surface("printed", 11, 256)
    groups = near_duplicate_groups(np.stack([phase_spectrum(surface.part(index).frame) for index in range(20)]))
    assert len(split(groups, 0)) == 4

"""The accuracy benchmark: its table, what it keeps and what it does again, stops, failures, and its pictures."""

from __future__ import annotations

import fcntl
import importlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from calib.metrics import LabelledImage, labelled_images
from detectors.checkpoint import checkpoint_path, read_checkpoint
from detectors.run import read_run
from detectors.sidn import Sidn
from edge.images.files import read_image, write_image

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "3", "--size", "64", "--width", "1"]
FIGURES = {"image_auroc", "pixel_auroc", "aupro", "pixel_ap", "minutes", "steps", "parameters", "gflops",
           "ms_per_image", "paper"}


@pytest.fixture(scope="module")
def scripts():
    """The modules accuracy and montage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(sys, "dont_write_bytecode", True)  # benchmarks/ holds scripts and nothing else
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        patch.setattr(Sidn, "ablations", {"without GSRM": Sidn.ablations["without GSRM"]})  # one is enough
        yield importlib.import_module("accuracy"), importlib.import_module("montage")


@pytest.fixture(scope="module")
def command(scripts):
    """Run the benchmark in this process: returns (exit code, stdout, stderr). ``watch`` gets stderr while it grows."""
    def run(*words: object, watch=None) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ended = threading.Event()
        watcher = threading.Thread(target=lambda: watch and watch(err, ended))
        watcher.start()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = scripts[0].main([str(word) for word in words])
        finally:
            ended.set()
            watcher.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return code, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope="module")
def done(command, cloth, tmp_path_factory):
    """A SIDN and an ablation of it, measured once: (folder, exit code, stdout)."""
    folder = tmp_path_factory.mktemp("accuracy")
    code, out, _ = command("--data", cloth, "--detectors", "sidn", *TINY, "--ablations", "--json", "--out",
                           folder / "table.md")
    return folder, code, out


@pytest.fixture
def again(done, tmp_path):
    """A copy of what was measured, to go on with: the path of its table."""
    shutil.copytree(done[0], tmp_path / "out")
    return tmp_path / "out" / "table.md"


def rows(table: Path) -> list[dict]:
    return json.loads(table.with_suffix(".json").read_text())["rows"]


def folder(table: Path, row: dict) -> Path:
    return (table.parent / row["bundle"]).parent


def test_the_page_and_the_json_hold_all_figures(done):
    where, code, out = done
    report = json.loads(out)
    assert code == 0 and report == json.loads((where / "table.json").read_text())
    assert [row["variant"] for row in report["rows"]] == ["full", "without GSRM"]
    for row in report["rows"]:
        assert row["status"] == "done" and set(row) >= FIGURES and row["steps"] == 3 and row["set"] == "woven"
        assert all(0 <= row[name] <= 1 for name in ("image_auroc", "pixel_auroc", "aupro", "pixel_ap"))
    full = report["rows"][0]
    assert full["paper"] is None and report["averages"]["sidn"]["image_auroc"] == full["image_auroc"]
    assert not report["cut_short"]
    page = (where / "table.md").read_text()
    for text in ("AUPRO", f"{full['parameters']:,}", f"{full['pixel_auroc']:.3f}", "steps 3",
                 "a multiply-add counts as two", "best of"):
        assert text in page


def test_the_figures_are_those_of_lineside_evaluate(done, cloth, lineside):
    row = rows(done[0] / "table.md")[0]
    code, out, _ = lineside("evaluate", done[0] / row["bundle"], "--data", cloth, "--json")
    told = json.loads(out)
    assert code == 0
    for name in ("image_auroc", "pixel_auroc", "aupro", "pixel_ap", "good", "defective", "unmarked"):
        assert row[name] == told[name], name


def test_an_ablation_is_fitted_without_its_part_and_told_as_a_difference(done):
    report = json.loads((done[0] / "table.json").read_text())
    full, without = report["rows"]
    assert read_run(folder(done[0] / "table.md", without) / "run")[0].arguments["global_relation"] is False
    assert read_run(folder(done[0] / "table.md", full) / "run")[0].arguments["global_relation"] is True
    (effect,) = report["ablations"]
    assert effect["variant"] == "without GSRM"
    assert effect["difference"] == {name: without[name] - full[name] for name in ("image_auroc", "pixel_auroc")}
    line = f"| without GSRM | {without['image_auroc']:.3f} | {effect['difference']['image_auroc']:+.3f} |"
    assert line in (done[0] / "table.md").read_text()


def test_parameters_and_operations_are_those_of_the_network(done):
    row = rows(done[0] / "table.md")[1]  # without GSRM: convolutions alone
    network = read_run(folder(done[0] / "table.md", row) / "run")[1]
    operations = []

    def count(layer, inputs, output):
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        if isinstance(layer, nn.Conv2d):
            operations.append(2 * output.numel() * kernel * layer.in_channels // layer.groups)
        else:
            operations.append(2 * inputs[0].numel() * kernel * layer.out_channels)

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 1, 64, 64))
    assert row["gflops"] == pytest.approx(sum(operations) / 1e9, rel=1e-6)
    assert row["parameters"] == sum(p.numel() for p in network.parameters())


def test_the_same_command_again_measures_nothing_again(command, cloth, again):
    before = {path: path.stat().st_mtime_ns for path in again.parent.rglob("result.json")}
    page = again.read_text()
    code, out, err = command("--data", cloth, "--detectors", "sidn", *TINY, "--ablations", "--out", again)
    assert code == 0 and "2 jobs, 2 of them done" in err and "woven" in out
    assert {path: path.stat().st_mtime_ns for path in again.parent.rglob("result.json")} == before
    assert again.read_text() == page


@pytest.mark.parametrize("change",
                         [["--seed", "1"], ["--steps", "4"], ["--width", "2"], ["--preset", "paper"], "data"], ids=str)
def test_what_was_measured_with_other_settings_is_not_taken_for_it(command, scripts, cloth, again, tmp_path,
                                                                   monkeypatch, change):
    monkeypatch.setattr(scripts[0], "run_job", lambda *_: "not now")
    data, extra = cloth, change
    if change == "data":
        data, extra = tmp_path / "woven", []
        shutil.copytree(cloth, data)
        path = sorted((data / "test" / "good").iterdir())[0]
        write_image(path, 255 - read_image(path))
    code, _, _ = command("--data", data, "--detectors", "sidn", *TINY, *extra, "--out", again)
    assert code == 1 and [row["status"] for row in rows(again)] == ["failed"]
    assert len(list(again.parent.rglob("result.json"))) == 2


def test_a_detector_that_fails_is_in_the_table_and_the_others_go_on(command, cloth, again, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(cloth, broken)
    sorted((broken / "train" / "good").iterdir())[3].write_bytes(b"no image")
    code, _, err = command("--data", broken, cloth, "--detectors", "sidn", *TINY, "--out", again)
    assert code == 1 and "cannot decode image" in err and "Traceback" not in err
    assert [(row["set"], row["status"]) for row in rows(again)] == [("broken", "failed"), ("woven", "done")]
    page = again.read_text()
    assert "Failed" in page and "cannot decode image" in page and "| broken | sidn | failed |" in page
    assert "Cut short" not in page


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_fit_whose_process_dies_is_a_failure(command, scripts, cloth, again, monkeypatch):
    monkeypatch.setattr(scripts[0], "work", die)
    code, _, err = command("--data", cloth, "--detectors", "sidn", *TINY, "--seed", "3", "--out", again)
    assert code == 1 and "was killed" in err and rows(again)[0]["status"] == "failed"


@pytest.mark.parametrize(("detector", "number"), [("fim-net", signal.SIGINT), ("sidn", signal.SIGTERM)])
def test_a_stop_is_told_and_the_same_command_goes_on(command, cloth, tmp_path, detector, number):
    """fim-net stops in its first phase, before a run can be written; sidn in its last, with an interrupted run."""
    def interrupt(err: io.StringIO, ended: threading.Event) -> None:
        while ", step " not in err.getvalue() and not ended.wait(0.01):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), number)

    table = tmp_path / "table.md"
    words = ["--data", cloth, "--detectors", f"{detector},sidn", "--steps", "20", "--size", "64", "--width", "1",
             "--out", table]
    code, _, err = command(*words, watch=interrupt)
    assert code == 130
    stopped = rows(table)[0]["status"]
    assert stopped.startswith("fit stopped after ") and "Cut short" in table.read_text()
    assert f"{detector} on woven: {stopped}" in table.read_text() and f"{detector} on woven: {stopped}" in err
    if detector != "sidn":
        assert rows(table)[1]["status"] == "not begun" and "sidn on woven: not begun" in err
    (checkpoint,) = table.with_name("table.md.work").glob("*/run.checkpoint")
    steps = len(read_checkpoint(checkpoint.with_name("run")).history)
    assert 1 <= steps < 20
    words[3] = detector
    code, _, err = command(*words)
    assert code == 0 and f", step {steps + 1};" in err and "Cut short" not in table.read_text()
    assert rows(table)[0]["steps"] == 20 and not checkpoint.exists()
    assert len((checkpoint.with_name("run") / "loss.csv").read_text().splitlines()) == 21


def test_a_fit_that_waits_for_its_evaluation_is_said_to(command, scripts, cloth, again, monkeypatch):
    (result,) = again.parent.rglob("sidn.woven.full.*/result.json")
    result.write_text(result.read_text()[:20])

    def stop(job, code, stop, tell):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return "stopped"

    monkeypatch.setattr(scripts[0], "run_job", stop)
    code, _, err = command("--data", cloth, "--detectors", "sidn", *TINY, "--out", again)
    assert code == 130 and "sidn on woven: fitted, not evaluated" in err
    assert not checkpoint_path(result.parent / "run").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["--data", "{tmp}/none"], "no test images"), (["--detectors", "sdin"], "there is no detector"),
    (["--minutes", "1"], "got both"),
    (["--size", "80", "--detectors", "all"], "multiple of"), (["--preset", "big"], "preset"),
    (["--out", "{tmp}/a.json"], "Markdown"),
    (["--backbone-weights", "{tmp}/none"], "no backbone weights"), (["--natural-images", "{tmp}/none"], "no folder"),
    (["--data", "{cloth}", "{cloth}"], "same name"), (["--ablations", "without wheels"], "no such ablation"),
])
def test_wrong_input_is_one_message_and_leaves_nothing(command, cloth, tmp_path, words, message):
    given = ["--data", cloth, "--detectors", "sidn", *TINY, "--out", tmp_path / "table.md"]
    code, _, err = command(*given, *[word.format(tmp=tmp_path, cloth=cloth) for word in words])
    assert code == 2 and message in err and err.startswith("accuracy: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_one_command_at_a_time(command, cloth, again):
    with (again.with_name("table.md.work") / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = command("--data", cloth, "--detectors", "sidn", *TINY, "--out", again)
    assert code == 2 and "another command" in err


def fake_row(detector: str, name: str, image: float, pixel: float, **more: object) -> dict:
    figures = {"image_auroc": image, "pixel_auroc": pixel, "aupro": pixel, "pixel_ap": None, "minutes": 1.0,
               "steps": 5, "parameters": 1000}
    return {"detector": detector, "set": name, "variant": "full", "status": "done", **figures, "gflops": 1.0,
            "ms_per_image": 1.0,
            "threads": 2, "sources": "a", "train_good": 245, "good": 32, "defective": 92, **more}


def test_averages_are_over_the_sets_and_of_the_best_detector_of_each(scripts):
    report = scripts[1].build_report({"minutes": 1}, [
        fake_row("sidn", "leather", 0.9, 0.8), fake_row("fim-net", "leather", 0.7, 0.9),
        fake_row("sidn", "felt", 0.5, 0.6),
        fake_row("fim-net", "felt", 0.6, 0.4)], {})
    means = {name: (row["sets"], round(row["image_auroc"], 9), round(row["pixel_auroc"], 9), row["pixel_ap"])
             for name, row in report["averages"].items()}
    assert means == {"sidn": (2, 0.7, 0.7, None), "fim-net": (2, 0.65, 0.65, None),
                     "best of each set, by image AUROC": (2, 0.75, 0.6, None),
                     "best of each set, figure by figure": (2, 0.75, 0.75, None)}


def test_the_papers_figures_stand_beside_their_material_and_another_split_is_marked(scripts):
    montage = scripts[1]
    report = montage.build_report({}, [
        fake_row("sidn", "leather", 0.9, 0.8), fake_row("ndp-net", "leather", 0.9, 0.8, good=28),
        fake_row("sidn", "felt", 0.9, 0.8)], {})
    assert [row["paper"] for row in report["rows"]] == [
        {"pixel_auroc": 0.996, "official_split": True},
        {"image_auroc": 1.0, "pixel_auroc": 0.9943, "aupro": 0.9879, "official_split": False}, None]
    page = montage.markdown(report)
    assert "| - / 0.996 / - |" in page and "| 1.000 / 0.994 / 0.988 † |" in page and "differ from that split" in page


def test_figures_of_other_code_are_said_to_be_of_other_code(scripts):
    same, other = (
        scripts[1].build_report({}, [fake_row("sidn", "a", 1, 1), fake_row("sidn", "b", 1, 1, sources=s)], {})
        for s in "ab")
    assert "code changed" in scripts[1].markdown(other) and "code changed" not in scripts[1].markdown(same)


def test_pictures_are_picked_by_name_one_of_each_defect_first(scripts, cloth):
    images = labelled_images(cloth)
    picked = [images[index] for index in scripts[1].pick(images)]
    kinds = sorted({image.defect for image in images} - {"good"})
    assert [image.defect for image in picked].count("good") == 1 and len(picked) == 8 and len(kinds) >= 3
    for kind in kinds:
        names = sorted(image.path.name for image in images if image.defect == kind)
        shown = [image.path.name for image in picked if image.defect == kind]
        assert shown and shown[0] == names[0] and (len(shown) < 2 or shown[1] == names[len(names) // 2])


def test_pictures_of_a_single_kind_are_far_apart(scripts):
    images = [LabelledImage(Path(f"{number:03d}.png"), "crack", None) for number in range(80)]
    assert scripts[1].pick(images) == [0, 10, 20, 30, 40, 50, 60, 70] and scripts[1].pick(images[:3]) == [0, 1, 2]


def test_the_montage_shows_image_truth_and_heat_where_they_are(scripts, cloth, tmp_path):
    montage = scripts[1]
    images = labelled_images(cloth)
    good, bad = next(i for i in images if i.defect == "good"), next(i for i in images if i.defect == "hole")
    hot = np.zeros((64, 64), np.float32)
    hot[:32, 32:] = 4.0  # the upper right quarter
    heat = montage.Heat([np.zeros((64, 64), np.float32), hot], 0.0, 1.0)
    heat.write(tmp_path / "maps.npz")
    montage.draw_montage(tmp_path / "m.png", "cloth", [good, bad], {"sidn": montage.Heat.read(tmp_path / "maps.npz")})
    picture = cv2.imread(str(tmp_path / "m.png")).astype(int)  # BGR
    reddest = (picture[..., 2] > 100) & (picture[..., 0] < 20) & (picture[..., 1] < 20)
    blue = (picture[..., 0] > 100) & (picture[..., 1] < 20) & (picture[..., 2] < 20)
    outline = (picture[..., 2] > 180) & (picture[..., 1] < 120) & (picture[..., 0] < 120)
    ys, xs = np.nonzero(reddest)
    below, beside = np.nonzero(blue)
    assert 0.2 < len(ys) / (len(below) + len(ys)) * 8 < 2  # one quarter of one of two maps
    assert xs.min() > beside.min() + 0.7 * (beside.max() - beside.min())
    assert ys.max() < (below.min() + below.max()) / 2 + 5
    oy, ox = np.nonzero(outline & ~reddest)
    assert len(oy) > 10 and oy.max() < below.min() and ox.min() > (beside.min() + beside.max()) / 2


def test_the_montage_of_a_set_lies_beside_the_page(done):
    picture = cv2.imread(str(done[0] / "table-woven.png"))
    assert picture.shape[1] > 1000 and picture.std() > 20
    assert "![woven](table-woven.png)" in (done[0] / "table.md").read_text()

"""A fit that is stopped and resumed is the fit that was not: phases, checkpoints, and what a resume refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from detectors import registry
from detectors.batches import Batch
from detectors.checkpoint import checkpoint_path, read_checkpoint
from detectors.detector import Detector, Preset
from detectors.fit import Budget, Settings, fit
from detectors.phases import Phase, Views
from detectors.run import read_run
from edge.base.errors import InputError

STEPS = 12  # of the toy: four in each of its phases
SIDN = Settings("sidn", seed=4, size=64, width=1)
SIDN_STEPS = 8


class Toy(Detector):
    """Three phases: the body learns, then head and scale, then all; the second starts by looking at the good images."""

    channels = 1
    stride = 16
    presets: ClassVar = {"edge": Preset(64, {"width": 3})}
    post_filter = ("threshold",)
    looked_at: ClassVar[list[tuple[int, ...]]] = []
    made: ClassVar[list[Toy]] = []
    mean: torch.Tensor

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 1, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(1))
        self.made.append(self)

    def look(self, pixels: np.ndarray) -> None:
        self.looked_at.append(pixels.shape)
        self.mean += float(pixels.mean()) / 255

    def phases(self, size: int) -> list[Phase]:
        third = 1 / 3
        return [
            Phase("first", third, self.losses, Views(32), 2, 1e-2, trained=("body",)),
            Phase("second", third, self.losses, Views(32), 2, 1e-2, trained=("head", "scale"), start=self.look),
            Phase("third", third, self.losses, Views(32), 2, 1e-2, weight_decay=1e-4),
        ]

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"mask": nn.functional.mse_loss(self.forward(batch.image).float(), batch.mask)}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(self.body(image - self.mean))

    def make_defects(self, image, rng, natural):
        mask = np.zeros_like(image)
        y, x = rng.integers(0, 16, 2)
        mask[y:y + 8, x:x + 8] = 1
        return np.where(mask > 0, 1 - image, image).astype(np.float32), mask


@pytest.fixture(scope="module")
def whole(cloth, tmp_path_factory):
    """The toy's run of a fit without a stop."""
    out = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.DETECTORS, "toy", f"{__name__}:Toy")
        fit(Settings("toy", seed=3), cloth, out, Budget(steps=STEPS))
    return out


@pytest.fixture
def toy(monkeypatch) -> Settings:
    monkeypatch.setitem(registry.DETECTORS, "toy", f"{__name__}:Toy")
    Toy.looked_at.clear()
    Toy.made.clear()
    return Settings("toy", seed=3)


def stopping_at(step: int):
    """A report that sends this process SIGINT behind a step."""
    def report(progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return report


def stop(settings, cloth, out, steps: int, at: int, resume: bool = False) -> None:
    """A fit that ends behind step ``at``, in whatever phase."""
    try:
        assert fit(settings, cloth, out, Budget(steps=steps), resume=resume, report=stopping_at(at)).interrupted
    except InputError as error:
        assert "interrupted in phase" in str(error)
    assert len(read_checkpoint(out).history) == at


def same_runs(one, two) -> bool:
    first, second = read_run(one)[1].state_dict(), read_run(two)[1].state_dict()
    equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return equal and (one / "loss.csv").read_text() == (two / "loss.csv").read_text()


@pytest.fixture(scope="module")
def sidn_run(cloth, tmp_path_factory):
    """A SIDN fitted without a stop."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(SIDN, cloth, out, Budget(steps=SIDN_STEPS))
    return out


@pytest.mark.parametrize("at", [2, 4, 6, 8, 11])  # inside each phase, and between them
def test_a_resumed_fit_is_the_uninterrupted_one_to_the_bit(cloth, tmp_path, whole, toy, at):
    stop(toy, cloth, tmp_path / "run", STEPS, at)
    record = fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS), resume=True)
    assert record.steps == STEPS and not record.interrupted and same_runs(whole, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("at", "written"), [(2, False), (6, False), (8, False), (11, True)])
def test_a_stop_leaves_a_run_in_the_last_phase_alone(cloth, tmp_path, toy, at, written):
    stop(toy, cloth, tmp_path / "run", STEPS, at)
    assert (tmp_path / "run" / "weights.pt").exists() == written and checkpoint_path(tmp_path / "run").exists()


def test_a_fit_can_be_stopped_again_and_again(cloth, tmp_path, whole, toy):
    stop(toy, cloth, tmp_path / "run", STEPS, 1)
    for at in (3, 5, 9):
        stop(toy, cloth, tmp_path / "run", STEPS, at, resume=True)
    fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS), resume=True)
    assert same_runs(whole, tmp_path / "run")


def test_a_resumed_sidn_is_the_uninterrupted_one_to_the_bit(cloth, tmp_path, sidn_run):
    stop(SIDN, cloth, tmp_path / "run", SIDN_STEPS, 3)
    fit(SIDN, cloth, tmp_path / "run", Budget(steps=SIDN_STEPS), resume=True)
    assert same_runs(sidn_run, tmp_path / "run") and not checkpoint_path(tmp_path / "run").exists()


@pytest.mark.parametrize("at", [4, 5, 10])
def test_a_phase_begins_once_over_a_resume(cloth, tmp_path, toy, at):
    stop(toy, cloth, tmp_path / "run", STEPS, at)
    assert len(Toy.looked_at) == (at > 4)
    record = fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS), resume=True)
    assert Toy.looked_at == [(len(record.fitted), 64, 64, 1)]


def test_a_phase_begins_once_when_it_is_stopped_at_that(cloth, tmp_path, whole, toy, monkeypatch):
    with monkeypatch.context() as patch:
        look = Toy.look
        patch.setattr(Toy, "look", lambda self, pixels: (look(self, pixels), os.kill(os.getpid(), signal.SIGINT)))
        stop(toy, cloth, tmp_path / "run", STEPS, 4)
    fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS), resume=True)
    assert len(Toy.looked_at) == 1 and same_runs(whole, tmp_path / "run")


def test_each_phase_changes_what_it_trains_and_nothing_else(cloth, tmp_path, toy):
    states = {}

    def keep(progress) -> None:
        states[progress.step] = (progress.phase,
                                 {name: value.clone() for name, value in Toy.made[-1].state_dict().items()})

    fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS), report=keep)
    assert [states[step][0] for step in (4, 5, 8, 9)] == ["first", "second", "second", "third"]

    def changed(first: int, last: int) -> set[str]:
        return {name for name, value in states[first][1].items() if not torch.equal(value, states[last][1][name])}

    body = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}
    norms = {"body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
    head = {"head.weight", "head.bias", "scale"}
    # Behind a batch norm a convolution's bias has no gradient but rounding, so it may stand still.
    assert changed(1, 4) | {"body.0.bias"} == body | norms
    assert changed(5, 8) == head
    assert changed(9, 12) | {"body.0.bias"} == body | norms | head


def test_a_resumed_phase_freezes_what_it_froze(cloth, tmp_path, toy):
    stop(toy, cloth, tmp_path / "run", STEPS, 6)
    before = read_checkpoint(tmp_path / "run").network
    states = []
    fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS), resume=True,
        report=lambda p: states.append({k: v.clone() for k, v in Toy.made[-1].state_dict().items()}))
    after = states[1]  # step 8, the last of the second phase
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias", "scale"}


def test_the_minutes_of_a_fit_count_over_a_stop(cloth, tmp_path):
    stop(SIDN, cloth, tmp_path / "run", SIDN_STEPS, 2)
    path = checkpoint_path(tmp_path / "run")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "seconds": 600.0}, path)
    begin = time.monotonic()
    record = fit(SIDN, cloth, tmp_path / "run", Budget(minutes=10.01), resume=True)
    assert 10.01 <= record.minutes < 11 and record.steps > 2 and time.monotonic() - begin < 60


KILLED = """
import sys
import detectors.fit
detectors.fit.SAVE_EVERY = 0.0
import lineside
lineside.main()
"""


def test_a_killed_fit_goes_on_from_its_last_checkpoint(cloth, tmp_path, lineside):
    words = ["fit", "sidn", "--data", cloth, "--out", tmp_path / "run", "--seed", 4, "--size", 64, "--width", 1,
             "--steps"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, [*words, 100000])], stderr=subprocess.DEVNULL)
    while not checkpoint_path(tmp_path / "run").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "run").exists()
    first = len(read_checkpoint(tmp_path / "run").history)
    code, out, err = lineside(*words, first + 2, "--resume", "--json")
    assert code == 0 and f'"steps": {first + 2}' in out and "Traceback" not in err
    assert not checkpoint_path(tmp_path / "run").exists()
    assert len((tmp_path / "run" / "loss.csv").read_text().splitlines()) == first + 3


@pytest.fixture
def stopped(cloth, tmp_path):
    """The arguments of a command whose fit was stopped."""
    stop(SIDN, cloth, tmp_path / "run", SIDN_STEPS, 2)
    return ["fit", "sidn", "--data", cloth, "--out", tmp_path / "run", "--seed", 4, "--size", 64, "--width", 1,
            "--steps", SIDN_STEPS]


@pytest.mark.parametrize(("change", "named"), [
    (["--seed", 5], "seed"), (["--width", 2], "arguments"), (["--size", 80], "size"),
    (["--data", "{cloth}/test/good"], "images"),
    (["--natural-images", "{cloth}/test"], "natural images"),
])
def test_a_fit_of_other_settings_is_not_resumed(cloth, stopped, tmp_path, lineside, change, named):
    before = checkpoint_path(tmp_path / "run").read_bytes()
    code, _, err = lineside(*stopped, *[str(word).format(cloth=cloth) for word in change], "--resume")
    assert code == 2 and f"had other settings: {named}" in err and "--resume" in err
    assert checkpoint_path(tmp_path / "run").read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other"])
def test_a_damaged_checkpoint_is_refused(stopped, tmp_path, lineside, damage):
    path = checkpoint_path(tmp_path / "run")
    data = path.read_bytes()
    if damage == "other":
        torch.save([1, 2, 3], path)
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": os.urandom(1000)}[damage])
    code, _, err = lineside(*stopped, "--resume")
    assert code == 2 and "not a complete checkpoint" in err and "Remove it" in err and path.exists()


def test_there_must_be_a_stopped_fit_to_resume(cloth, tmp_path, lineside):
    code, _, err = lineside("fit", "sidn", "--data", cloth, "--out", tmp_path / "run", "--steps", 2, "--resume")
    assert code == 2 and "no stopped fit" in err and "Omit --resume" in err and list(tmp_path.iterdir()) == []


def test_a_stopped_fit_is_not_forgotten(stopped, tmp_path, lineside):
    before = checkpoint_path(tmp_path / "run").read_bytes()
    code, _, err = lineside(*stopped)
    assert code == 2 and "Add --resume" in err and checkpoint_path(tmp_path / "run").read_bytes() == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")], ids=repr)
def test_a_fit_goes_on_when_there_is_no_room_for_its_checkpoint(cloth, tmp_path, monkeypatch, whole, toy, error):
    save, tried = torch.save, []

    def full(state, path) -> None:
        if "checkpoint" not in str(path):
            return save(state, path)
        tried.append(path)
        path.write_bytes(b"as much as there was room for")
        raise error

    monkeypatch.setattr("torch.save", full)
    monkeypatch.setattr("detectors.fit.SAVE_EVERY", 0.0)
    record = fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS))
    assert len(tried) >= STEPS and not record.interrupted and same_runs(whole, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_last_checkpoint_stays_when_there_is_no_room_for_the_next(cloth, tmp_path, monkeypatch, toy):
    stop(toy, cloth, tmp_path / "run", STEPS, 3)
    before = checkpoint_path(tmp_path / "run").read_bytes()

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(InputError, match="interrupted in phase"):
        fit(toy, cloth, tmp_path / "run", Budget(steps=STEPS), resume=True, report=stopping_at(5))
    assert checkpoint_path(tmp_path / "run").read_bytes() == before

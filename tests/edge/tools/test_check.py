"""`lineside check`: the latency budget of a line on this machine."""

from __future__ import annotations

import json

import pytest

from edge.tools.check import Budget, Stage, advice


def budget(infer: float, *, available: float = 100, lead: float = 100, rate: float | None = None) -> Budget:
    stages = [Stage("grab", [1.0] * 1000), Stage("infer", [infer / 2] * 500 + [infer] * 500),
              Stage("wire", [4.0], per_part=False)]
    return Budget(stages, available, 5 + infer, lead, 26, 1 + infer, rate)


def test_what_fits_and_how_fast_it_may_go():
    found = budget(45, rate=10)
    assert found.fits and found.margin == 50 and found.highest_rate == pytest.approx(1000 / 46)
    assert found.highest_speed == pytest.approx(200 / 150) and not advice(found, "fp32")
    assert budget(45, rate=20).highest_speed == pytest.approx(1000 / 46 / 20)
    assert found.stages[1].at(0.25) == 22.5 and found.stages[1].at(0.999) == 45


@pytest.mark.parametrize(("found", "precision", "words"), [
    (budget(120), "fp32", ["travel_ms = 225", "lead_ms = 30", "--precision auto"]),
    (budget(180), "int8", ["travel_ms = 285", "faster processor"]),
    (budget(45, rate=30), "fp32", ["at most 21.7 parts a second"]), (budget(45, lead=20), "fp32", ["lead_ms = 30"])])
def test_what_does_not_fit_says_what_to_change(found, precision, words):
    changes = " ".join(advice(found, precision))
    assert not found.fits and all(word in changes for word in words), changes


def test_a_line_is_measured_on_its_own_images(rig, lineside):
    made = rig()
    code, out, err = lineside("check", made.folder / "line.toml", "--frames", "50", "--rate", "1", "--json")
    assert out, err
    found = json.loads(out)
    assert code == (0 if found["fits"] else 1), err
    assert set(found["stages"]) == {"grab", "prepare", "infer", "filter and decide", "line control", "wire"}
    assert all(0 < stage["p50"] <= stage["p99"] <= stage["p99.9"] for stage in found["stages"].values())
    assert found["needed_ms"] == pytest.approx(sum(stage["p99.9"] for stage in found["stages"].values()), abs=0.01)
    assert found["frame"] == [64, 64, 1] or len(found["frame"]) == 3
    code, out, _ = lineside("check", made.folder / "line.toml", "--frames", "50", "--speed", "100000", "--pitch", "1")
    assert code == 1 and "change: at most" in out and "mm/s" in out


def test_what_cannot_be_checked_is_refused(rig, lineside, tmp_path):
    made = rig(camera=tmp_path / "none")
    assert lineside("check", made.folder / "line.toml", "--pitch", "5")[0] == 2
    code, _, err = lineside("check", made.folder / "line.toml")
    assert code == 2 and "Traceback" not in err

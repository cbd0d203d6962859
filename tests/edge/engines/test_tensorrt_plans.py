"""The cache of plans: a fitting plan is found, and any other is refused with the reason before TensorRT sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.base.errors import EngineError
from edge.engines.plans import Device, PlanKey, find_plan, has_plan, plan_folder, write_plan

HERE = Device("NVIDIA RTX A2000", "8.6", "10.13.2.6", "13.0.0", "580.65 (13000)")
GRAPH = "a" * 64
KEY = PlanKey(GRAPH, HERE, (1, 4, 16))
PLAN = bytes(range(256)) * 100


def test_a_tensorrt_plan_is_found_again(tmp_path):
    path = write_plan(tmp_path, KEY, PLAN)
    assert path.stat().st_mode & 0o777 == 0o600 and has_plan(tmp_path, GRAPH)
    assert find_plan(tmp_path, GRAPH, HERE, 1) == (KEY, PLAN) and find_plan(tmp_path, GRAPH, HERE, 16) == (KEY, PLAN)
    assert not [other for other in tmp_path.iterdir() if other != path]


@pytest.mark.parametrize(("change", "words"), [
    ({"driver": "590.10 (13010)"}, "built for driver 580.65 .13000., this machine has 590.10"),
    ({"tensorrt": "10.16.1.11"}, "built for tensorrt 10.13.2.6, this machine has 10.16.1.11"),
    ({"gpu": "NVIDIA Orin"}, "built for gpu NVIDIA RTX A2000, this machine has NVIDIA Orin"),
    ({"compute_capability": "8.9"}, "built for compute capability 8.6, this machine has 8.9"),
    ({"cuda": "12.6.0"}, "built for cuda 13.0.0, this machine has 12.6.0"),
])
def test_a_stale_tensorrt_plan_is_named(tmp_path, change, words):
    path = write_plan(tmp_path, KEY, PLAN)
    with pytest.raises(EngineError, match=words) as caught:
        find_plan(tmp_path, GRAPH, replace(HERE, **change), 1)
    assert path.name in str(caught.value) and "lineside engine" in str(caught.value)


def test_a_tensorrt_plan_for_other_batches_or_graphs_is_named(tmp_path):
    write_plan(tmp_path, KEY, PLAN)
    with pytest.raises(EngineError, match="takes 1 to 16 images at once, not 17"):
        find_plan(tmp_path, GRAPH, HERE, 17)
    with pytest.raises(EngineError, match="none in"):
        find_plan(tmp_path, "b" * 64, HERE, 1)
    with pytest.raises(EngineError, match="belongs to another graph"):  # with the same first 16 digits of the hash
        find_plan(tmp_path, GRAPH[:16] + "c" * 48, HERE, 1)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + b"x", lambda data: data + b"more"])
def test_a_damaged_tensorrt_plan_is_refused(tmp_path, spoil):
    path = write_plan(tmp_path, KEY, PLAN)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(EngineError, match=r"is damaged.*run `lineside engine"):
        find_plan(tmp_path, GRAPH, HERE, 1)


@pytest.mark.parametrize("content", [b"", b"ftrt" + PLAN, b"lineside plan 1\n{", b"lineside plan 1\n{}\n" + PLAN])
def test_what_this_version_did_not_write_is_no_tensorrt_plan(tmp_path, content):
    (tmp_path / KEY.file).write_bytes(content)
    with pytest.raises(EngineError, match="was not written by this version"):
        find_plan(tmp_path, GRAPH, HERE, 1)


def test_what_others_can_write_is_not_loaded_into_tensorrt(tmp_path, monkeypatch):
    path = write_plan(tmp_path, KEY, PLAN)
    path.chmod(0o666)
    with pytest.raises(EngineError, match=r"others may write to.*chmod go-w"):
        find_plan(tmp_path, GRAPH, HERE, 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = plan_folder()
    assert folder == tmp_path / "lineside" / "engines" and folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(EngineError, match="others may write to"):
        plan_folder()


def test_a_new_tensorrt_plan_takes_the_place_of_stale_ones(tmp_path):
    old = write_plan(tmp_path, PlanKey(GRAPH, replace(HERE, driver="570 (12080)"), KEY.batch), b"old")
    other = write_plan(tmp_path, PlanKey("b" * 64, HERE, KEY.batch), b"of another graph")
    smaller = write_plan(tmp_path, PlanKey(GRAPH, HERE, (1, 1, 1)), b"of another batch")
    assert not old.exists()
    path = write_plan(tmp_path, KEY, PLAN)
    assert not old.exists() and other.exists() and not smaller.exists() and path.exists()


def test_a_full_disk_leaves_no_half_tensorrt_plan(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge.engines.plans.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_plan(tmp_path, KEY, PLAN)
    assert not list(tmp_path.iterdir())

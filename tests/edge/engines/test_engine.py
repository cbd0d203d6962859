"""The OpenVINO engine: it leaves the process's signal handling alone, and caches compiled models."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import edge.engines.openvino_graphs as openvino_graphs
from edge.bundle.bundle import load_bundle
from edge.engines.openvino import OpenVinoEngine

SCRIPT = """
import os, signal, sys
from pathlib import Path
from edge.engines.openvino import OpenVinoEngine

told = []
signal.signal(signal.SIGINT, lambda *_: told.append(True))
first, second = (OpenVinoEngine(Path(sys.argv[1]), (64, 64, 1), precision="fp32", threads=1, slots=1, batch=1)
                 for _ in range(2))
first.close()
del first
second.close()
del second
os.kill(os.getpid(), signal.SIGINT)
sys.exit(0 if told else 3)
"""


def test_a_signal_is_handled_after_engines_ended_in_the_order_they_began(exported):
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", SCRIPT, exported / "model" / "fp32.onnx"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode != -signal.SIGSEGV, "OpenVINO left a signal stack that is unmapped"
    assert done.returncode == 0, done.stderr


@pytest.fixture
def cached(exported, tmp_path, monkeypatch):
    """A function that makes an engine with its own cache, and returns a map and the number of graphs compiled so
    far.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled, compile_model = [], openvino_graphs.compile_model
    monkeypatch.setattr(openvino_graphs, "compile_model", lambda *a: compiled.append(a) or compile_model(*a))

    def make(threads=1):
        engine = OpenVinoEngine(load_bundle(exported).graph("fp32"), (64, 64, 1), precision="fp32", threads=threads,
                                slots=1, batch=1, cached=True)
        slot = engine.lease()
        slot.input[:] = np.arange(64, dtype=np.uint8)[:, None]
        slot.start(1)
        return slot.wait(5).copy(), len(compiled)

    return make


def test_a_second_start_takes_the_compiled_model_of_the_first(cached, tmp_path):
    first, made = cached()
    again, still = cached()
    assert (made, still) == (1, 1) and np.array_equal(first, again)
    assert cached(threads=2)[1] == 2
    assert sorted(path.suffix for path in (tmp_path / "cache/lineside/openvino").iterdir()) == [".blob", ".blob"]


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"",
                                    lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]])
def test_a_damaged_model_in_the_cache_is_made_anew(cached, tmp_path, damage):
    first, _ = cached()
    (path,) = (tmp_path / "cache/lineside/openvino").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again, made = cached()
    assert made == 2 and np.array_equal(first, again)
    assert cached()[1] == 2


def test_a_cache_that_others_may_write_or_that_cannot_be_made_is_left_alone(cached, tmp_path):
    cached()
    (path,) = (tmp_path / "cache/lineside/openvino").iterdir()
    path.chmod(0o666)
    assert cached()[1] == 2
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    assert cached()[1] == 3

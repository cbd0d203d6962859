"""The TensorRT runner on the real PyCUDA, over a driver and a TensorRT that are stand-ins: see tests/mocks/runner_checks.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mocks import HERE, build_driver, run_python

CHECKS = re.findall(r"^def (\w+)\(\) -> None:", (HERE / "runner_checks.py").read_text(), re.M)


@pytest.fixture(scope="session")
def mocks(tmp_path_factory) -> Path:
    """A folder with the compiled driver mock."""
    pytest.importorskip("pycuda", reason="PyCUDA is not installed: make setup builds it beside a CUDA toolkit")
    folder = tmp_path_factory.mktemp("mocks")
    build_driver(folder)
    return folder


def test_there_are_checks():
    assert len(CHECKS) > 10


@pytest.mark.parametrize("check", CHECKS)
def test_tensorrt_runner(mocks, exported, check):
    done = run_python(mocks, HERE / "runner_checks.py", exported / "model" / "fp32.onnx", check)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean-up operation failed" not in done.stderr or any(word in check for word in ("failure", "crashes", "lost")), done.stderr

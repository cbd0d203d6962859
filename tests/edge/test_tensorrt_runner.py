"""The TensorRT runner on the real PyCUDA, over a driver and a TensorRT that are stand-ins: see tests/mocks/runner_checks.py."""

from __future__ import annotations

import re

import pytest

from tests.mocks import HERE, run_python

CHECKS = re.findall(r"^def (\w+)\(\) -> None:", (HERE / "runner_checks.py").read_text(), re.M)


def test_there_are_checks():
    assert len(CHECKS) > 10


@pytest.mark.parametrize("check", CHECKS)
def test_tensorrt_runner(mocks, exported, check):
    done = run_python(mocks, HERE / "runner_checks.py", exported / "model" / "fp32.onnx", check)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean-up operation failed" not in done.stderr or any(word in check for word in ("failure", "crashes", "lost")), done.stderr

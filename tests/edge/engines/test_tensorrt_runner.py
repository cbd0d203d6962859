"""The TensorRT engine with the real PyCUDA, on a mocked driver and TensorRT: see tests/mocks/runner_checks.py."""

from __future__ import annotations

import re

import pytest

from edge.engines.gpu import driver_version
from tests.mocks import HERE, run_python

CHECKS = re.findall(r"^def (\w+)\(\) -> None:", (HERE / "runner_checks.py").read_text(), re.M)


def test_there_are_checks():
    assert len(CHECKS) > 10


@pytest.mark.parametrize("check", CHECKS)
def test_tensorrt_runner(mocks, exported, check):
    done = run_python(mocks, HERE / "runner_checks.py", exported / "model" / "fp32.onnx", check)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean-up operation failed" not in done.stderr or any(word in check for word in ("failure", "crashes",
                                                                                            "lost")), done.stderr


@pytest.mark.parametrize(("path", "text", "version"), [
    ("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6\n",
     "535.54.03"),
    ("proc/driver/nvidia/version",
     "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
    ("etc/nv_tegra_release", "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64\n",
     "36.4.0"),
    ("etc/hostname", "line3\n", ""),
])
def test_the_driver_that_a_tensorrt_plan_is_for(tmp_path, path, text, version):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert driver_version(tmp_path) == version

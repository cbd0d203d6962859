"""Every supported version of TensorRT, PyCUDA and CUDA has every call we make, and the check finds a missing one."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mocks import build_driver
from tests.tensorrt_api import GPU, calls, has

VERSIONS = ["10.3.0", "10.7.0", "10.13.2.6", "10.16.1.11", "11.4.0.106"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, dict[str, bool]]:
    if not GPU.is_dir():
        pytest.skip("the bindings of TensorRT's versions are not there: make setup fetches them on x86_64")
    folder = tmp_path_factory.mktemp("driver")
    build_driver(folder)
    done = subprocess.run([sys.executable, Path(__file__).with_name("tensorrt_api.py"), "--json"],
                          capture_output=True, text=True, env={**os.environ, "MOCK_DRIVER": str(folder)})
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_every_version_has_every_tensorrt_call(rows):
    lacking = {name: [version for version, there in versions.items() if not there] for name, versions in rows.items()}
    assert not any(lacking.values()), {name: versions for name, versions in lacking.items() if versions}
    tensorrt = [versions for name, versions in rows.items() if name.startswith("tensorrt ")]
    supported = [f"TensorRT {version}" for version in VERSIONS]
    assert len(tensorrt) > 40 and all(list(versions) == supported for versions in tensorrt)
    assert sum(name.startswith("pycuda") for name in rows) > 15 and sum(name.startswith("driver") for name in rows) > 6


def test_a_tensorrt_call_that_went_away_is_seen():
    found, _, driver = calls(ast.parse(
        "config.set_flag(trt.BuilderFlag.FP16)\nself._engine.get_binding_shape(0)\n_driver().cuGraphLaunch(1)\n"
        "class Calibrator(trt.IInt8EntropyCalibrator2):\n    def get_batch(self): ...\n"))
    assert found >= {"BuilderFlag.FP16", "ICudaEngine.get_binding_shape", "IBuilderConfig.set_flag",
                     "IInt8EntropyCalibrator2.get_batch"}
    assert driver == {"cuGraphLaunch"}
    flags = {"BuilderFlag": {"TF32": None}}
    assert not has(flags, "BuilderFlag.FP16") and has(flags, "BuilderFlag.TF32")


def test_no_milliseconds_of_tensorrt_that_no_gpu_gave():
    root = Path(__file__).parents[1]
    for path in (root / "README.md", *(root / "docs").glob("*.md")):
        for paragraph in re.split(r"\n\s*\n|\n(?=[|-])", path.read_text()):
            milliseconds = re.search(r"\d\s*ms\b|millisecond", paragraph)
            assert not ("TensorRT" in paragraph and milliseconds), f"{path.name}: {paragraph}"

"""The tests that need a GPU and the report that runs them, on the mocks, so that they work on a real GPU at once."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile

import pytest

from tests.export import test_gpu
from tests.mocks import HERE, environment


@pytest.mark.skipif(not test_gpu.REASON, reason="this machine has a GPU")
def test_without_a_gpu_the_tensorrt_tests_are_skipped_with_one_reason():
    gpu, skip = test_gpu.pytestmark
    assert gpu.name == "gpu" and skip.name == "skipif" and skip.args == (True,)
    assert skip.kwargs["reason"].startswith("no GPU: ") and "lineside doctor" in skip.kwargs["reason"]


def test_the_gpu_report_of_tensorrt_runs_the_gpu_tests_and_is_one_archive(mocks, cloth, exported, quantised, tmp_path):
    chosen = "-k '(sidn and int8) or soak or kept'"  # all of them pass too, but take minutes
    made = {"cloth": str(cloth), "exported": str(exported), "quantised": str(quantised[0])}
    done = subprocess.run([sys.executable, HERE / "short_report.py", tmp_path / "out"], capture_output=True, text=True,
                          timeout=290, cwd=tmp_path, env=environment(mocks, LINESIDE_SOAK="20", PYTEST_ADDOPTS=chosen,
                                                                     LINESIDE_TEST_FIXTURES=json.dumps(made)))
    assert done.returncode == 0, done.stderr
    archive = json.loads(done.stdout)["archive"]
    with tarfile.open(archive) as opened:
        names = {name.rpartition("/")[2] for name in opened.getnames()}
        record = next(name for name in opened.getnames() if name.endswith("report.json"))
        report = json.load(opened.extractfile(record))
        said = {step: opened.extractfile(record.replace("report.json", f"{step}.txt")).read().decode()
                for step in report["exit_codes"]}
    assert names == {"report.json", "tests.xml", *(f"{step}.txt" for step in report["exit_codes"])}
    assert set(report["exit_codes"].values()) == {0}, said
    assert "3 passed" in said["tests"] and "skipped" not in said["tests"]
    assert "times_as_fast" in said["speed"] and "mock without a GPU" in said["engines"]


def test_without_a_gpu_there_is_no_tensorrt_report(tmp_path, lineside, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, _, err = lineside("doctor", "--gpu-report", tmp_path / "out")
    assert code == 2 and "needs a GPU with TensorRT and PyCUDA" in err and not (tmp_path / "out").exists()

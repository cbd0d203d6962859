"""Which tests run side by side and which are quick; and a small real bundle, fitted once on rendered cloth."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.rig import rig

__all__ = ["rig"]  # for all tests

MADE = json.loads(os.environ.get("LINESIDE_TEST_FIXTURES", "{}"))  # paths, from a test that runs pytest itself
# With two workers on two cores, a second thread would take its core from a line that has to keep time. A whole fit
# sets its own number of threads (detectors/fit.py): one for each core that the process may use.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
# Threads of a fit that wait for one another must sleep, not spin: with two workers they would take each other's core.
# Of two fits and some lines, this made 204 s into 74 s.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# Lines, PLCs and cameras that keep real time, in processes and threads of their own. They mostly wait, so they share a
# worker and run one after another, while the rest of the suite (fits and exports) takes the other core.
REAL_TIME = (
    "benchmarks/test_fuzz", "benchmarks/test_lateness", "benchmarks/test_line_benchmarks",
    "edge/cameras/", "edge/engines/test_tensorrt_runner", "edge/line_control/", "edge/plc/", "edge/record/",
    "edge/run/", "edge/tools/", "simulation/", "test_toy_kinds",
)
# What `make check` leaves to `make test`: files and tests, by how their ids begin, that start processes, fit, export,
# compile or need packages of the system. The tests that use one of the fixtures are slow too.
SLOW = (
    "benchmarks/", "calib/test_metrics.py::test_a_set_without", "calib/test_metrics.py::test_evaluate_reports",
    "detectors/test_aw_ssim.py::test_a_fit", "detectors/test_fim_net.py::test_a_fit", "detectors/test_fit",
    "detectors/test_light.py::test_a_fit", "detectors/test_local_occ.py::test_centres",
    "detectors/test_local_occ.py::test_disturbed", "detectors/test_local_occ.py::test_every_variant",
    "detectors/test_local_occ.py::test_parts_that_come_turned",
    "detectors/test_local_occ.py::test_the_map_is_the_geometric",
    "detectors/test_ndp_net.py::test_every_variant", "detectors/test_ndp_net.py::test_phases", "detectors/test_resume",
    "edge/cameras/test_custom_camera.py::test_two_emulated", "edge/cameras/test_genicam", "edge/cameras/test_gige",
    "edge/cameras/test_video_live", "edge/engines/test_onnxruntime.py::test_it_gives", "edge/plc/test_plc_lines",
    "edge/plc/test_plc_modbus", "edge/plc/test_plc_samples", "edge/plc/test_toy_plc.py::test_a_line",
    "edge/record/test_session", "edge/run/", "edge/tools/test_check",
    "export/",
    "simulation/test_demo_promise", "simulation/test_simulate",
    "test_deploy", "test_tensorrt_api", "test_toy_kinds",
)
SLOW_FIXTURES = {"fitted_run", "mocks", "rig", "line"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that keep real time on one worker of pytest-xdist, and mark those that are not quick."""
    for item in items:
        place = item.nodeid.removeprefix("tests/")
        if place.startswith(REAL_TIME):
            item.add_marker(pytest.mark.xdist_group("real-time"))
        if place.startswith(SLOW) or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cloth(tmp_path_factory) -> Path:
    """Rendered cloth in MVTec AD layout, 96 px: 24 + 24 good, 8 defective images."""
    from simulation.render.surface import Surface, render_folder

    if "cloth" in MADE:
        return Path(MADE["cloth"])
    folder = tmp_path_factory.mktemp("cloth") / "woven"
    render_folder(folder, Surface("woven", 3, 96), train_good=24, test_good=24, defective=8)
    return folder


@pytest.fixture(scope="session")
def fitted_run(cloth, tmp_path_factory) -> Path:
    """A SIDN of width 2 at 64 px, after 30 steps."""
    from detectors.fit import Budget, Settings, fit

    out = tmp_path_factory.mktemp("run") / "run"
    fit(Settings("sidn", seed=1, size=64, width=2), cloth, out, Budget(steps=30))
    return out


@pytest.fixture(scope="session")
def exported(request, tmp_path_factory) -> Path:
    """The run's bundle, without a threshold. Not to be changed: see `bundle`."""
    if "exported" in MADE:
        return Path(MADE["exported"])
    from export.onnx import export_run

    out = tmp_path_factory.mktemp("bundle") / "bundle"
    export_run(request.getfixturevalue("fitted_run"), out)
    return out


@pytest.fixture
def bundle(exported, tmp_path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def calibrated_once(exported, cloth, tmp_path_factory) -> Path:
    """The bundle with a threshold from the 24 good test images. Not to be changed: see `calibrated`."""
    from calib.threshold import calibrate
    from edge.bundle.bundle import load_bundle

    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("calibrated") / "bundle"))
    calibrate(load_bundle(folder), cloth / "test" / "good", 0.1)
    return folder


@pytest.fixture
def calibrated(bundle, calibrated_once) -> Path:
    """The bundle, with its threshold, that a test may change."""
    shutil.copytree(calibrated_once, bundle, dirs_exist_ok=True)
    return bundle


@pytest.fixture(scope="session")
def quantised(exported, cloth, tmp_path_factory) -> tuple[Path, dict]:
    """A bundle quantised over a calibration set, within limits that all precisions pass, and what the command printed.

    Not to be changed: see `bundle_of`.
    """
    if "quantised" in MADE:
        return Path(MADE["quantised"]), {}
    import lineside
    from calib.collect import collect, review
    from calib.threshold import calibrate
    from edge.bundle.bundle import load_bundle

    folder = tmp_path_factory.mktemp("quantised") / "bundle"
    shutil.copytree(exported, folder)
    good = cloth / "test" / "good"
    calibrate(load_bundle(folder), good, 0.1)
    collect(cloth, folder.with_name("set"), 8)
    review(folder.with_name("set"), [])
    words = ["quantize", str(folder), "--good", str(good), "--calibration", str(folder.with_name("set")), "--frames",
             "120", "--limits", "flips=1,contrast=1,auroc=1,aupro=1", "--json"]
    result = CliRunner().invoke(lineside.app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return folder, json.loads(result.stdout)


@pytest.fixture
def bundle_of(quantised, tmp_path) -> Path:
    """A copy of the quantised bundle that a test may change."""
    return Path(shutil.copytree(quantised[0], tmp_path / "quantised"))


@pytest.fixture(scope="session")
def mocks(tmp_path_factory) -> Path:
    """A folder with the compiled driver mock."""
    pytest.importorskip("pycuda", reason="PyCUDA is not installed: make setup builds it beside a CUDA toolkit")
    from tests.mocks import build_driver

    folder = tmp_path_factory.mktemp("mocks")
    build_driver(folder)
    return folder


@pytest.fixture
def lineside():
    """Run the command line in this process: returns (exit code, stdout, stderr)."""
    def run(*arguments: object) -> tuple[int, str, str]:
        import lineside as module
        from edge.base.errors import LinesideError

        result = CliRunner().invoke(module.app, [str(a) for a in arguments])
        if isinstance(result.exception, LinesideError):  # what main() makes of it
            return 2, result.stdout, result.stderr + str(result.exception)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run

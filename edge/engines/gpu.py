"""This machine's GPU: driver, PyCUDA and TensorRT, their versions, and what `lineside doctor` reports about them."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge.base.errors import EngineError
from edge.base.finding import Finding, gpu_guide, is_jetson, package_version, read_system_file
from edge.engines.plans import Device, plan_folder

OLDEST_TENSORRT = (10, 3)


def import_cuda() -> Any:
    """PyCUDA's driver module, after `cuInit`, which must precede any TensorRT object. Raises EngineError if there is no
    GPU.
    """
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise EngineError("TensorRT needs PyCUDA", got=str(error),
                          next="`lineside doctor` says how to install it.") from error
    try:
        cuda.init()
        if cuda.Device.count() < 1:
            raise EngineError("no GPU is visible", next="`lineside doctor` says what is missing.")
    except cuda.Error as error:
        raise EngineError("the CUDA driver does not start", got=str(error),
                          next="`lineside doctor` says what is missing.") from error
    return cuda


def import_tensorrt() -> Any:
    """The TensorRT package. Raises EngineError if it is missing or too old."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise EngineError("TensorRT is not installed", got=str(error),
                          next="`lineside doctor` says how to install it.") from error
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST_TENSORRT:
        raise EngineError("this TensorRT is too old", got=trt.__version__, expected="10.3 or later",
                          next="See docs/jetson.md and docs/gpu-pc.md.")
    return trt


def driver_version(root: Path = Path("/")) -> str:
    """The version of the GPU's kernel driver, or of L4T on a Jetson; empty if neither is known."""
    for name, pattern in (("proc/driver/nvidia/version", r"Kernel Module.*?\s(\d+(?:\.\d+)+)"),
                          ("etc/nv_tegra_release", r"R(\d+).*?REVISION: (\d+(?:\.\d+)*)")):
        try:
            if (found := re.search(pattern, (root / name).read_text())) is not None:
                return ".".join(found.groups())
        except OSError:
            continue
    return ""


@cache
def this_device() -> Device:
    """This machine's GPU, and the versions that a plan depends on. Raises EngineError."""
    cuda, trt = import_cuda(), import_tensorrt()
    device = cuda.Device(0)
    driver = f"{driver_version()} ({cuda.get_driver_version()})".strip()
    return Device(device.name(), ".".join(map(str, device.compute_capability())), trt.__version__,
                  ".".join(map(str, cuda.get_version())), driver)


@cache
def make_logger(trt: Any) -> Any:
    """The process's logger for TensorRT. ``last`` is the last error logged, often the only explanation of a failed
    call.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = text.strip()

    return Log()


def find_driver(root: Path) -> Iterator[Finding]:
    """Findings about the GPU's driver and CUDA."""
    guide = gpu_guide(root)
    version = read_system_file(root / "proc/driver/nvidia/version") or read_system_file(root / "etc/nv_tegra_release")
    if not version:
        yield Finding("GPU driver", "missing", "no NVIDIA driver is loaded",
                      f"Without a GPU the line runs on the processor. {guide}")
    else:
        yield Finding("GPU driver", "ok", version.splitlines()[0])
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield Finding("CUDA", "missing", "no libcuda.so.1", f"It comes with the driver. {guide}")
        return
    code, number, count = driver.cuInit(0), ctypes.c_int(), ctypes.c_int()
    if code:
        yield Finding("CUDA", "missing", f"cuInit returns error {code}",
                      "Check that the driver is loaded (nvidia-smi) and that this user may open /dev/nvidia*; on a "
                      "Jetson: sudo usermod -aG video,render $USER")
        return
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        yield Finding("CUDA", "missing", "the driver sees no GPU", "Look at nvidia-smi and at CUDA_VISIBLE_DEVICES.")
        return
    name = ctypes.create_string_buffer(200)
    driver.cuDeviceGetName(name, 200, 0)
    yield Finding("CUDA", "ok", f"{number.value // 1000}.{number.value % 1000 // 10} on {name.value.decode()}")


def find_packages(root: Path) -> Iterator[Finding]:
    """Findings about TensorRT, PyCUDA and the cache of plans."""
    jetson, guide = is_jetson(root), gpu_guide(root)
    if find_spec("tensorrt") is None:
        yield Finding("TensorRT", "missing", "not installed",
                      ("sudo apt-get install python3-libnvinfer, and a virtual environment with "
                       "--system-site-packages." if jetson else "pip install 'lineside[tensorrt]'.") + f" {guide}")
    else:
        done = subprocess.run([sys.executable, "-c", "import tensorrt; print(tensorrt.__version__)"],
                              capture_output=True, text=True)
        version = done.stdout.strip()
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
            yield Finding("TensorRT", "missing", f"does not load: {reason}", guide)
        elif tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TENSORRT:
            yield Finding("TensorRT", "missing", f"{version} is too old", f"10.3 or later is needed. {guide}")
        elif jetson and package_version("tensorrt"):
            yield Finding("TensorRT", "improvable", f"{version} comes from a package index",
                          f"On a Jetson it has to be the system's: pip uninstall tensorrt. {guide}")
        else:
            yield Finding("TensorRT", "ok", version)
    if find_spec("pycuda") is None:
        yield Finding("PyCUDA", "missing", "not installed",
                      f"pip install 'lineside[tensorrt]', with nvcc on the PATH. {guide}")
    else:
        yield Finding("PyCUDA", "ok", package_version("pycuda") or "installed")
    try:
        plans = len(list(plan_folder().glob("*.plan")))
        yield Finding("TensorRT plans", "ok", f"{plans} in {plan_folder()}",
                      "" if plans or find_spec("tensorrt") is None else "lineside engine BUNDLE builds them.")
    except EngineError as error:
        yield Finding("TensorRT plans", "missing", str(error))

"""``lineside doctor``: what this machine can do, what is missing, and what to do about each.

Nothing here changes the machine. ``root`` stands for the file system's root, so that a test can put another machine in its place.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edge.line_control.realtime import PRIORITY

FREE_DISK = 2_000_000_000  # bytes
MEMLOCK = 512 << 20  # bytes
Status = Literal["ok", "missing", "improvable"]


@dataclass(frozen=True)
class Finding:
    """A line of the report. remedy: what to run or to read, empty where nothing is to be done."""

    what: str
    status: Status
    text: str
    remedy: str = ""


def examine(root: Path = Path("/")) -> list[Finding]:
    """Look at everything."""
    jetson = is_jetson(root)
    return [*_gpu(root), *_packages(jetson), *_jetson(root, jetson), *_engines(), *_cameras(jetson), *_real_time(), *_serial(root),
            *_disk()]


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson."""
    return (root / "etc/nv_tegra_release").exists()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip("\0\n ")
    except OSError:
        return ""


def _guide(jetson: bool) -> str:
    return "See docs/jetson.md." if jetson else "See docs/gpu-pc.md."


def _gpu(root: Path) -> Iterator[Finding]:
    guide = _guide(is_jetson(root))
    version = _read(root / "proc/driver/nvidia/version").splitlines() or _read(root / "etc/nv_tegra_release").splitlines()
    if not version:
        yield Finding("GPU driver", "missing", "no NVIDIA driver is loaded", f"Without a GPU the line runs on the processor. {guide}")
    else:
        yield Finding("GPU driver", "ok", version[0])
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield Finding("CUDA", "missing", "no libcuda.so.1", f"It comes with the driver. {guide}")
        return
    code, number, count = driver.cuInit(0), ctypes.c_int(), ctypes.c_int()
    if code:
        yield Finding("CUDA", "missing", f"cuInit gives error {code}",
                      "Is the driver loaded (nvidia-smi), and may this user open /dev/nvidia*? Jetson: sudo usermod -aG video,render $USER")
        return
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        yield Finding("CUDA", "missing", "the driver sees no GPU", "Look at nvidia-smi and at CUDA_VISIBLE_DEVICES.")
        return
    name = ctypes.create_string_buffer(200)
    driver.cuDeviceGetName(name, 200, 0)
    yield Finding("CUDA", "ok", f"{number.value // 1000}.{number.value % 1000 // 10} on {name.value.decode()}")


def _packages(jetson: bool) -> Iterator[Finding]:
    guide = _guide(jetson)
    if find_spec("tensorrt") is None:
        yield Finding("TensorRT", "missing", "not installed", ("sudo apt-get install python3-libnvinfer, and a virtual environment with "
                      "--system-site-packages." if jetson else "pip install 'lineside[tensorrt]'.") + f" {guide}")
    else:
        done = subprocess.run([sys.executable, "-c", "import tensorrt; print(tensorrt.__version__)"], capture_output=True, text=True)
        version = done.stdout.strip()
        if done.returncode:
            yield Finding("TensorRT", "missing", "does not load: " + (done.stderr.strip().splitlines() or ["no reason"])[-1], guide)
        elif tuple(int(part) for part in version.split(".")[:2]) < (10, 3):
            yield Finding("TensorRT", "missing", f"{version} is too old", f"10.3 or later is needed. {guide}")
        elif jetson and _installed("tensorrt"):
            yield Finding("TensorRT", "improvable", f"{version} comes from a package index",
                          f"On a Jetson it has to be the system's: pip uninstall tensorrt. {guide}")
        else:
            yield Finding("TensorRT", "ok", version)
    if find_spec("pycuda") is None:
        yield Finding("PyCUDA", "missing", "not installed", f"pip install 'lineside[tensorrt]', with nvcc on the PATH. {guide}")
    else:
        yield Finding("PyCUDA", "ok", _installed("pycuda") or "installed")
    from edge.base.errors import EngineError
    from edge.engines.plans import plan_folder

    try:
        plans = len(list(plan_folder().glob("*.plan")))
        yield Finding("TensorRT plans", "ok", f"{plans} in {plan_folder()}", "" if plans or find_spec("tensorrt") is None
                      else "lineside engine BUNDLE builds them.")
    except EngineError as error:
        yield Finding("TensorRT plans", "missing", str(error))


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _jetson(root: Path, jetson: bool) -> Iterator[Finding]:
    governors = {_read(path) for path in root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}
    if governors and governors != {"performance"}:
        yield Finding("processor clocks", "improvable", "governor " + ", ".join(sorted(governors)),
                      "sudo jetson_clocks" if jetson else "sudo cpupower frequency-set -g performance")
    elif governors:
        yield Finding("processor clocks", "ok", "governor performance")
    if not jetson:
        return
    done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True) if shutil.which("nvpmodel") else None
    mode = "" if done is None else " ".join(line for line in done.stdout.split("\n") if "Power Mode" in line).rpartition(":")[2].strip()
    if mode.startswith("MAXN"):
        yield Finding("power mode", "ok", mode)
    else:
        yield Finding("power mode", "improvable", mode or "not known: no nvpmodel", "sudo nvpmodel -m 0, if supply and cooling can do it")


def _cameras(jetson: bool) -> Iterator[Finding]:
    try:
        import_module("gi").require_version("Aravis", "0.8")
        yield Finding("Aravis", "ok", "0.8: GigE Vision and USB3 Vision cameras can be used")
    except (ImportError, ValueError) as error:
        yield Finding("Aravis", "improvable", str(error), "GigE Vision and USB3 Vision cameras need it: sudo apt-get install "
                      "gir1.2-aravis-0.8, then pip install 'lineside[genicam]'")
    import cv2

    version = next((line.partition(":")[2].strip() for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line), "NO")
    if not version.startswith("NO"):
        yield Finding("OpenCV with GStreamer", "ok", version)
    else:
        what = "CSI cameras need" if jetson else "A pipeline as `source` of a video needs"
        yield Finding("OpenCV with GStreamer", "improvable", version, f"{what} the system's OpenCV: pip uninstall opencv-python-headless, "
                      "sudo apt-get install python3-opencv, and a virtual environment with --system-site-packages."
                      + (" See docs/jetson.md." if jetson else ""))


def _engines() -> Iterator[Finding]:
    if find_spec("openvino") is None:
        yield Finding("OpenVINO", "missing", "not installed", "pip install openvino")
    else:
        from edge.engines.openvino import device_name, runs_bfloat16

        yield Finding("OpenVINO", "ok", device_name() + (", multiplies bfloat16" if runs_bfloat16() else ""))
    if find_spec("onnxruntime") is None:
        yield Finding("ONNX Runtime", "improvable", "not installed", "pip install 'lineside[onnxruntime]', if you want it")
    else:
        import onnxruntime

        yield Finding("ONNX Runtime", "ok", f"{onnxruntime.__version__} with " + ", ".join(onnxruntime.get_available_providers()))


def _real_time() -> Iterator[Finding]:
    remedy = "Run it by the systemd unit, or in /etc/security/limits.d/lineside.conf: @lineside - rtprio 60, and - memlock unlimited"
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        os.sched_setscheduler(0, before, parameter)
        yield Finding("real-time priority", "ok", f"SCHED_FIFO {PRIORITY} is allowed")
    except PermissionError:
        yield Finding("real-time priority", "missing", f"SCHED_FIFO {PRIORITY} is not allowed", remedy)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    enough = os.geteuid() == 0 or locked == resource.RLIM_INFINITY or locked >= MEMLOCK
    yield Finding("memory that may be locked", "ok" if enough else "improvable",
                  "unlimited" if os.geteuid() == 0 or locked == resource.RLIM_INFINITY else f"{locked >> 20} MB", "" if enough else remedy)


def _serial(root: Path) -> Iterator[Finding]:
    ports = [path for pattern in ("ttyUSB*", "ttyACM*", "ttyTHS*", "ttyS*") for path in sorted((root / "dev").glob(pattern))
             if not path.name.startswith("ttyS") or _read(root / "sys/class/tty" / path.name / "type") not in ("", "0")]
    if not ports:
        yield Finding("serial ports", "missing", "none", "Plug in the converter to the PLC; dmesg says whether it is seen.")
    for path in ports:
        if not os.access(path, os.R_OK | os.W_OK):
            yield Finding(f"serial port {path.name}", "missing", "this user may not open it",
                          "sudo usermod -aG dialout $USER, and log in again")
            continue
        timer = _read(root / "sys/bus/usb-serial/devices" / path.name / "latency_timer")
        if timer.isdigit() and int(timer) > 1:
            yield Finding(f"serial port {path.name}", "improvable", f"an FTDI chip that keeps bytes back for {timer} ms",
                          f"echo 1 | sudo tee /sys/bus/usb-serial/devices/{path.name}/latency_timer; for good by the udev rule in deploy/")
        else:
            yield Finding(f"serial port {path.name}", "ok", "this user may open it" + (", latency timer 1 ms" if timer else ""))


def _disk() -> Iterator[Finding]:
    try:
        folder = Path.cwd()
        free = shutil.disk_usage(folder).free
    except OSError as error:  # a user without rights here
        yield Finding("disk", "improvable", f"cannot be looked at from here: {error.strerror}", "Run it in the line's folder.")
        return
    yield Finding("disk", "ok" if free >= FREE_DISK else "improvable", f"{free / 1e9:.1f} GB free at {folder}",
                  "" if free >= FREE_DISK else "Journal and pictures need room: make some, or lower quota_mb in the line file.")

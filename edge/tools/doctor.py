"""``lineside doctor``: what this machine can do, what is missing, and what to do about each.

Nothing here changes the machine. ``root`` is the file system's root folder, or a test's stand-in for it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

from edge.base.finding import Finding, is_jetson, read_system_file
from edge.cameras.kinds import CAMERAS
from edge.engines.backends import all_backends
from edge.line_control.realtime import PRIORITY
from edge.plc.kinds import doctor as plc_findings

FREE_DISK = 2_000_000_000  # bytes
MEMLOCK = 512 << 20  # bytes


def examine(root: Path = Path("/")) -> list[Finding]:
    """All findings: those of each kind in the registries, then those about the machine."""
    jetson = is_jetson(root)
    kinds = [*all_backends(), *(resolve_name(CAMERAS[kind]) for kind in CAMERAS)]
    found = [finding for kind in kinds for finding in kind.doctor(root)]
    return [*found, *plc_findings(root), *_jetson(root, jetson), *_real_time(), *_disk()]


def _jetson(root: Path, jetson: bool) -> Iterator[Finding]:
    governors = {read_system_file(path) for path in root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}
    if governors and governors != {"performance"}:
        yield Finding("processor clocks", "improvable", "governor " + ", ".join(sorted(governors)),
                      "sudo jetson_clocks" if jetson else "sudo cpupower frequency-set -g performance")
    elif governors:
        yield Finding("processor clocks", "ok", "governor performance")
    if not jetson:
        return
    done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True) if shutil.which("nvpmodel") else None
    lines = [] if done is None else [line for line in done.stdout.split("\n") if "Power Mode" in line]
    mode = " ".join(lines).rpartition(":")[2].strip()
    if mode.startswith("MAXN"):
        yield Finding("power mode", "ok", mode)
    else:
        yield Finding("power mode", "improvable", mode or "not known: no nvpmodel",
                      "sudo nvpmodel -m 0, if supply and cooling can do it")


def _real_time() -> Iterator[Finding]:
    remedy = ("Run it as the systemd unit, or add to /etc/security/limits.d/lineside.conf: @lineside - rtprio 60, and "
              "- memlock unlimited")
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        os.sched_setscheduler(0, before, parameter)
        yield Finding("real-time priority", "ok", f"SCHED_FIFO {PRIORITY} is allowed")
    except PermissionError:
        yield Finding("real-time priority", "missing", f"SCHED_FIFO {PRIORITY} is not allowed", remedy)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = os.geteuid() == 0 or locked == resource.RLIM_INFINITY
    enough = unlimited or locked >= MEMLOCK
    yield Finding("memory that may be locked", "ok" if enough else "improvable",
                  "unlimited" if unlimited else f"{locked >> 20} MB", "" if enough else remedy)


def _disk() -> Iterator[Finding]:
    try:
        folder = Path.cwd()
        free = shutil.disk_usage(folder).free
    except OSError as error:  # a user without rights here
        yield Finding("disk", "improvable", f"cannot be looked at from here: {error.strerror}",
                      "Run it in the line's folder.")
        return
    yield Finding("disk", "ok" if free >= FREE_DISK else "improvable", f"{free / 1e9:.1f} GB free at {folder}",
                  "" if free >= FREE_DISK else
                  "Journal and pictures need room: make some, or lower quota_mb in the line file.")

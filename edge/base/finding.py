"""What `lineside doctor` reports, and the few looks at the machine that several findings share.

Each kind of camera, PLC link and engine has a ``doctor(root)`` in its own file, which yields its findings.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

Status = Literal["ok", "missing", "improvable"]


@dataclass(frozen=True)
class Finding:
    """A line of the report. remedy: what to run or read; empty if nothing needs to be done."""

    what: str
    status: Status
    text: str
    remedy: str = ""


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether the machine with this root folder is a Jetson."""
    return (root / "etc/nv_tegra_release").exists()


def gpu_guide(root: Path = Path("/")) -> str:
    """The sentence that names the page about this machine's GPU."""
    return "See docs/jetson.md." if is_jetson(root) else "See docs/gpu-pc.md."


def read_system_file(path: Path) -> str:
    """The text of a file below /proc, /sys or /etc, stripped; empty if it cannot be read."""
    try:
        return path.read_text().strip("\0\n ")
    except OSError:
        return ""


def package_version(package: str) -> str:
    """The version of an installed package; empty if it was not installed by a Python package manager."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

"""Lists the V4L2 devices of a machine."""

from __future__ import annotations

import os
from pathlib import Path

from edge.cameras.camera import FoundCamera


def find_devices(root: Path = Path("/")) -> list[FoundCamera]:
    """The V4L2 devices of the machine whose file system is at ``root``."""
    found = []
    for device in sorted((root / "dev").glob("video*"), key=lambda path: (len(path.name), path.name)):
        node = root / "sys/class/video4linux" / device.name
        bus = (node / "device").resolve()
        texts = []
        if _read(node / "index") not in ("", "0"):
            texts.append("not the first node of its camera: metadata, or another stream")
        if not os.access(device, os.R_OK | os.W_OK):
            texts.append("this user may not open it: sudo usermod -aG video $USER, then log in again")
        vendor, model = _read(bus.parent / "manufacturer"), _read(node / "name")
        address = bus.name if bus.exists() else ""
        found.append(FoundCamera("video", f"/dev/{device.name}", vendor, model, address, "; ".join(texts)))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

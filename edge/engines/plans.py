"""The cache of TensorRT plans. Each file begins with what its plan was built for, which is checked before TensorRT sees
the plan.

A plan is machine code for one GPU, driver and TensorRT version. Of plans that do not fit, TensorRT refuses some,
crashes on others, and runs others with wrong results; and whoever can write a plan can run code here. So a plan is
loaded only from this user's own cache, only undamaged, and only on the device that it was built for.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.base.errors import EngineError
from edge.base.files import cache_folder, is_ours_alone

MAGIC = b"lineside plan 1\n"
LONGEST_HEADER = 10_000


@dataclass(frozen=True)
class Device:
    """What a plan depends on apart from its graph."""

    gpu: str
    compute_capability: str  # "8.6"
    tensorrt: str
    cuda: str
    driver: str

    @property
    def name(self) -> str:
        """GPU, TensorRT and driver in one line."""
        return f"{self.gpu}, TensorRT {self.tensorrt}, driver {self.driver}"


@dataclass(frozen=True)
class PlanKey:
    """What a plan was built from and for. batch: (least, best, most) images at once."""

    graph_sha256: str
    device: Device
    batch: tuple[int, int, int]

    @property
    def file(self) -> str:
        """The plan's file name in the cache."""
        return f"{self.graph_sha256[:16]}-{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]}.plan"


def plan_folder() -> Path:
    """The folder of this user's plans. Raises EngineError if somebody else may write into it."""
    folder = cache_folder("engines")
    _check_owner(folder)
    return folder


def write_plan(folder: Path, key: PlanKey, plan: bytes) -> Path:
    """Put a plan into the cache; it replaces all others of the same graph and GPU. Raises OSError."""
    path = folder / key.file
    header = {**asdict(key), "plan_sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
    temporary = folder / f".{key.file}.part"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + json.dumps(header).encode() + b"\n")
            file.write(plan)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for other, found in _plans(folder, key.graph_sha256):
        if other != path and found is not None and found.device.gpu == key.device.gpu:
            other.unlink(missing_ok=True)
    return path


def has_plan(folder: Path, graph_sha256: str) -> bool:
    """Whether there is a plan of a graph, for any device."""
    return any(True for _ in _plans(folder, graph_sha256))


def find_plan(folder: Path, graph_sha256: str, device: Device, batch: int) -> tuple[PlanKey, bytes]:
    """The plan of a graph for this device that takes ``batch`` images at once.

    Raises EngineError with the reason why each plan of the graph does not fit.
    """
    advice = "Run `lineside engine BUNDLE` on this machine."
    reasons = []
    for path, key in _plans(folder, graph_sha256):
        if key is None:
            reasons.append(f"{path.name} was not written by this version")
        elif key.graph_sha256 != graph_sha256:
            reasons.append(f"{path.name} belongs to another graph")
        elif key.device != device:
            there, here = asdict(key.device), asdict(device)
            reasons.append(f"{path.name} is stale: " + ", ".join(
                f"built for {name.replace('_', ' ')} {there[name]}, this machine has {here[name]}"
                for name in there if there[name] != here[name]))
        elif not key.batch[0] <= batch <= key.batch[2]:
            reasons.append(f"{path.name} takes {key.batch[0]} to {key.batch[2]} images at once, not {batch}")
        else:
            try:
                return key, _read(path)
            except EngineError as error:
                reasons.append(str(error).rstrip("."))
    raise EngineError("no TensorRT plan of this graph fits", got="; ".join(reasons) or f"none in {folder}",
                      expected=f"one for {device.name}", next=advice)


def _plans(folder: Path, graph_sha256: str) -> Iterator[tuple[Path, PlanKey | None]]:
    """The files named after a graph, each with the key in its header; None for an unreadable one."""
    for path in sorted(folder.glob(f"{graph_sha256[:16]}-*.plan")):
        try:
            header, _ = _header(path)
            yield path, PlanKey(header["graph_sha256"], Device(**header["device"]), tuple(header["batch"]))
        except (OSError, ValueError, TypeError, KeyError):
            yield path, None


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A plan's header, and the offset at which the plan begins. Raises OSError or ValueError."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not a plan")
        line = file.readline(LONGEST_HEADER)
        return dict(json.loads(line)), file.tell()


def _read(path: Path) -> bytes:
    """The plan in a file. Raises EngineError unless the file is undamaged and belongs to this user alone."""
    advice = f"Delete {path} and run `lineside engine BUNDLE` again."
    _check_owner(path)
    try:
        header, start = _header(path)
        plan = path.read_bytes()[start:]
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {path}", got=str(error), next=advice) from error
    if hashlib.sha256(plan).hexdigest() != header.get("plan_sha256"):
        raise EngineError(f"{path} is damaged", got=f"{len(plan)} bytes with another SHA-256",
                          expected=f"{header.get('bytes')} bytes", next=advice)
    return plan


def _check_owner(path: Path) -> None:
    if not is_ours_alone(path):
        found = path.stat()
        raise EngineError(f"others may write to {path}",
                          got=f"owner {found.st_uid}, mode {stat.filemode(found.st_mode)}",
                          expected=f"owner {os.geteuid()}, writable by nobody else",
                          next=f"Delete it, or: chown {os.geteuid()} {path}; chmod go-w {path}")

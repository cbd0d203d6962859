"""Files that are whole or not there, and this user's cache."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def write_text_safely(path: Path, text: str) -> None:
    """`write_bytes_safely` of ``text`` in UTF-8."""
    write_bytes_safely(path, text.encode())


def write_bytes_safely(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name, flush it to the disk, and rename it to ``path``: all of it or nothing."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_ours_alone(path: Path) -> bool:
    """Whether a file or folder belongs to this user, and nobody else may write it."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def cache_folder(name: str) -> Path:
    """The folder of this user's cache for something that can be made anew, made unless it is there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineside" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

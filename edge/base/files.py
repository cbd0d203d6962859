"""Files that are written completely or not at all, and the user's cache."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def write_text_safely(path: Path, text: str) -> None:
    """`write_bytes_safely` of ``text`` in UTF-8."""
    write_bytes_safely(path, text.encode())


def write_bytes_safely(path: Path, data: bytes) -> None:
    """Write ``data`` completely or not at all: to a temporary file, flushed to disk, then renamed to ``path``."""
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
    """Whether a file or folder belongs to this user and nobody else may write to it."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def cache_folder(name: str) -> Path:
    """A folder in the user's cache, created if missing. Anything in it can be rebuilt."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineside" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

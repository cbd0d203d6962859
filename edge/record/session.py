"""The folder of a session, and line control's part of it, which comes through a pipe. Loads nothing heavy."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.base.errors import InputError
from edge.base.files import write_text_safely
from edge.base.settings import without_password

FORMAT = 1
LAST = 4096  # bytes; a ledger has some hundred
RECORD = "LINESIDE_RECORD"  # the variable that tells a runtime where its session is


def begin_session(folder: Path, line: Path) -> None:
    """Make the folder of a session of a line file. Raises InputError where there is something already, or nothing can be written."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is there already", expected="a folder that is not there, or empty", next="Give another --out.")
        (folder / "frames").mkdir(parents=True, exist_ok=True)
        (folder / "line.toml").write_text(without_password(line.read_text(encoding="utf-8")), encoding="utf-8")
        note(folder, format=FORMAT, line=line.name, started=time.time(), complete=False)
    except OSError as error:
        raise InputError(f"cannot write a session to {folder}", got=error.strerror, expected="a writable folder with room") from error


def note(folder: Path, **values: Any) -> None:
    """Add to what ``session.json`` says."""
    path = folder / "session.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    write_text_safely(path, json.dumps({**known, **values}, indent=1) + "\n")


class TapeWriter:
    """The supervisor's part: what line control writes down comes through a pipe."""

    def __init__(self, folder: Path, trouble: Callable[[str], None]) -> None:
        """``trouble`` is told once why the tape is not complete."""
        self.path = folder / "control.log"
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write the session {folder}", got=error.strerror, next="Make room on the disk.") from error
        self._reader, self.descriptor = os.pipe()
        self._trouble, self.failed = trouble, False
        self._thread = threading.Thread(target=self._loop, name="tape", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        with self._file:
            while data := os.read(self._reader, 1 << 20):
                if self.failed:
                    continue  # line control never waits
                try:
                    while data:
                        data = data[self._file.write(data):]
                except OSError as error:
                    self.failed = True
                    self._trouble(f"the session cannot be written any more: {error}")

    def ends_whole(self) -> bool:
        """Whether line control wrote its last word, the ledger."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - LAST))
            lines = file.read().splitlines()
        return bool(lines) and lines[-1].startswith(b"vledger ")

    def close(self) -> None:
        """When line control has ended: write the rest."""
        os.close(self.descriptor)
        self._thread.join()
        os.close(self._reader)

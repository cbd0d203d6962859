"""The folder of a recorded session, and the supervisor's part of it: the tape of line control. Loads nothing heavy.

    session.json     about the session: format, times, whether it is complete
    line.toml        the line file, without passwords
    runtime.jsonl    what the runtime did: triggers, frames, verdicts, outcomes
    control.log      line control's tape: all that it read, and the bytes that it wrote
    frames/          the camera frames, lossless
    bundles/         the bundles that were live
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.base.errors import InputError
from edge.base.files import write_text_safely
from edge.base.settings import without_password

FORMAT = 1  # of session folders; goes up when an older version could not replay them any more
LAST = 4096  # bytes at the end of a tape that hold its last line; a ledger has some hundred
RECORD = "LINESIDE_RECORD"  # environment variable: tells the runtime where its session is


def begin_session(folder: Path, line: Path) -> None:
    """Make the folder of a session of a line file. Raises InputError where it exists already, or cannot be written."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists already", expected="a folder that does not exist, or is empty",
                             next="Give another --out.")
        (folder / "frames").mkdir(parents=True, exist_ok=True)
        (folder / "line.toml").write_text(without_password(line.read_text(encoding="utf-8")), encoding="utf-8")
        note(folder, format=FORMAT, line=line.name, started=time.time(), complete=False)
    except OSError as error:
        raise InputError(f"cannot write a session to {folder}", got=error.strerror,
                         expected="a writable folder with room") from error


def note(folder: Path, **values: Any) -> None:
    """Add values to ``session.json``."""
    path = folder / "session.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    write_text_safely(path, json.dumps({**known, **values}, indent=1) + "\n")


def check_format(folder: Path, about: Any) -> dict[str, Any]:
    """What ``session.json`` says, if this version can replay the session.

    Raises InputError otherwise, naming both formats.
    """
    found = about.get("format") if isinstance(about, dict) else None
    if found == FORMAT:
        return {"complete": False, **about}
    newer = isinstance(found, int) and found > FORMAT
    raise InputError(f"this version cannot replay the session {folder}",
                     got=f"format {found}" if found is not None else "no format",
                     expected=f"format {FORMAT}",
                     next="Replay it with the newer version of Lineside that recorded it." if newer
                     else "Record it again.")


class TapeWriter:
    """Writes line control's tape, which comes through a pipe: line control itself never waits for the disk."""

    def __init__(self, folder: Path, trouble: Callable[[str], None]) -> None:
        """trouble: is told once why the tape is not complete. Raises InputError where it cannot be written at all."""
        self.path = folder / "control.log"
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write the session {folder}", got=error.strerror,
                             next="Make room on the disk.") from error
        self._reader, self.descriptor = os.pipe()
        self._trouble, self.failed = trouble, False
        self._thread = threading.Thread(target=self._loop, name="tape", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        with self._file:
            while data := os.read(self._reader, 1 << 20):
                if self.failed:
                    continue  # keep the pipe empty
                try:
                    while data:
                        data = data[self._file.write(data):]
                except OSError as error:
                    self.failed = True
                    self._trouble(f"the session cannot be written any more: {error}")

    def ends_whole(self) -> bool:
        """Whether the tape ends with the ledger, as that of a process that ended in order does."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - LAST))
            lines = file.read().splitlines()
        return bool(lines) and lines[-1].startswith(b"vledger ")

    def close(self) -> None:
        """Line control has ended: write the rest."""
        os.close(self.descriptor)
        self._thread.join()
        os.close(self._reader)


class NoRecording:
    """The supervisor's part of a run that is not recorded."""

    folder: Path | None = None
    tape: int | None = None  # descriptor that takes line control's tape

    def end(self, code: int, restarts: int) -> None:
        """The line has ended with an exit code, after so many restarts of its processes."""


class Recording(NoRecording):
    """The supervisor's part of a recorded session."""

    def __init__(self, folder: Path, line: Path, say: Callable[[str], None]) -> None:
        """Make the session's folder and open the tape. Raises InputError."""
        begin_session(folder, line)
        self.folder: Path = folder
        self._say, self._tape = say, TapeWriter(folder, say)
        self.tape = self._tape.descriptor

    def end(self, code: int, restarts: int) -> None:
        """Close the tape, and say whether the session is complete.

        A session of a line that did not start is removed.
        """
        self._tape.close()
        if code == 2 and not restarts and not any((self.folder / "frames").iterdir()):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        try:
            known = json.loads((self.folder / "session.json").read_text())
            note(self.folder, ended=time.time(), restarts=restarts,
                 complete=not restarts and not known.get("failed", True) and not self._tape.failed
                 and self._tape.ends_whole())
        except (OSError, ValueError) as error:
            self._say(f"the session cannot be written any more: {error}")

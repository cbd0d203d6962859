"""The journal: a row in SQLite (WAL) for each part, and pictures of the rejects in dated folders.

A thread of its own writes, so that a slow disk never slows the line. When it falls behind it drops pictures, and no row ever: rows
wait in memory while the disk is full.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.control.state import Ended
from edge.errors import InputError
from edge.inspection import Inspection
from edge.overlay import draw_overlay
from edge.prepare import Frame, write_image
from edge.rule import Verdict

WRITE_EVERY = 0.25  # s
RETRY_AFTER = 1.0  # s
PICTURES_WAITING = 16  # beyond that the oldest one is dropped

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY, started REAL NOT NULL, line TEXT NOT NULL, bundle TEXT NOT NULL, graph_sha256 TEXT NOT NULL,
    threshold REAL NOT NULL);
CREATE TABLE IF NOT EXISTS parts (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs, part INTEGER NOT NULL, triggered REAL NOT NULL, ended REAL NOT NULL,
    encoder INTEGER, verdict TEXT NOT NULL, cause TEXT, score REAL, image TEXT, blobs TEXT, picture TEXT);
"""


@dataclass(frozen=True)
class PartInfo:
    """What the runtime knows of a part beyond its verdict; travels with it through line control."""

    image: str
    frame: Frame | None = None
    inspection: Inspection | None = None


class Journal:
    """The journal of one run of a line."""

    def __init__(self, path: Path, *, pictures: bool, quota_mb: float, alarm: Callable[[str], None]) -> None:
        """Open or create the database. Raises InputError when it cannot be written."""
        self.rows_written = 0
        self.pictures_written = 0
        self.pictures_dropped = 0
        self._path = path
        self._folder = path.with_name(f"{path.stem}-pictures") if pictures else None
        self._quota = quota_mb * 1e6
        self._alarm = alarm
        self._failing = False
        self._run = 0
        self._clock = time.time() - time.monotonic()  # from the line's clock to the wall's
        self._rows: deque[tuple[object, ...]] = deque()
        self._to_draw: deque[tuple[str, Frame, Inspection]] = deque()
        self._stored: deque[tuple[Path, int]] = deque()  # pictures on the disk, oldest first, with their sizes
        self._stored_bytes = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="journal", daemon=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"cannot write the journal {path}", got=str(error), expected="a SQLite file in a writable folder with room",
                             next="Mend `path` under [journal] in the line file, or make room on the disk.") from error
        if self._folder is not None and self._folder.is_dir():
            old = sorted(self._folder.rglob("*.png"), key=lambda p: p.stat().st_mtime)
            for picture in old:
                self._store(picture)

    def start(self, line: str, bundle: Path, graph_sha256: str, threshold: float) -> None:
        """Write the run's own row and begin to take parts."""
        try:
            cursor = self._database.execute(
                "INSERT INTO runs (started, line, bundle, graph_sha256, threshold) VALUES (?, ?, ?, ?, ?)",
                (time.time(), line, str(bundle), graph_sha256, threshold))
        except sqlite3.Error as error:
            raise InputError(f"cannot write the journal {self._path}", got=str(error), next="Make room on the disk.") from error
        self._run = int(cursor.lastrowid or 0)
        self._thread.start()

    def part(self, ended: Ended) -> None:
        """Take the outcome of a part; returns at once."""
        info = ended.info if isinstance(ended.info, PartInfo) else PartInfo("")
        picture, blobs = None, None
        if info.inspection is not None:
            blobs = json.dumps([asdict(blob) for blob in info.inspection.blobs])
            if self._folder is not None and ended.verdict is Verdict.REJECT and info.frame is not None:
                day = time.strftime("%Y-%m-%d", time.localtime(ended.ended + self._clock))
                picture = f"{day}/run-{self._run}-part-{ended.part}.png"
                self._to_draw.append((picture, info.frame, info.inspection))
                if len(self._to_draw) > PICTURES_WAITING:
                    self._to_draw.popleft()
                    self.pictures_dropped += 1
        self._rows.append((self._run, ended.part, ended.triggered + self._clock, ended.ended + self._clock, ended.encoder,
                           ended.verdict.value, None if ended.cause is None else ended.cause.value, ended.score,
                           info.image or None, blobs, picture))

    @property
    def rows_waiting(self) -> int:
        """Rows that are not on the disk yet."""
        return len(self._rows)

    def _loop(self) -> None:
        while not self._stopping.wait(RETRY_AFTER if self._failing else WRITE_EVERY):
            self._write_rows()
            self._draw_pictures()

    def _write_rows(self) -> None:
        batch = [self._rows[i] for i in range(len(self._rows))]
        if not batch:
            return
        try:
            self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT INTO parts (run, part, triggered, ended, encoder, verdict, cause, score, image, blobs, picture) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", batch)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if not self._failing:
                self._alarm(f"the journal {self._path} cannot be written: {error}; its rows wait in memory. Make room on the disk.")
            self._failing = True
            return
        for _ in batch:
            self._rows.popleft()
        self.rows_written += len(batch)
        self._failing = False

    def _draw_pictures(self) -> None:
        while self._folder is not None and self._to_draw and not self._failing:
            name, frame, inspection = self._to_draw.popleft()
            path = self._folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, draw_overlay(frame, inspection, path.stem))
                self._store(path)
                self.pictures_written += 1
            except OSError:
                self.pictures_dropped += 1

    def _store(self, picture: Path) -> None:
        size = picture.stat().st_size
        self._stored.append((picture, size))
        self._stored_bytes += size
        while self._stored_bytes > self._quota and len(self._stored) > 1:
            oldest, size = self._stored.popleft()
            oldest.unlink(missing_ok=True)
            self._stored_bytes -= size

    def close(self) -> list[tuple[object, ...]]:
        """Write what is left and close. Returns the rows that could not be written."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._write_rows()
        self._draw_pictures()
        self._database.close()
        return list(self._rows)

"""The journal: a row in SQLite (WAL) for each part, and pictures of the rejects in dated folders.

A thread of its own writes, so that a slow disk never slows the line. When it falls behind it drops pictures, but never
a row: rows wait in memory while the disk is full.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.base.errors import InputError
from edge.images.files import write_image
from edge.images.frames import Frame
from edge.inspection.inspector import Inspection
from edge.inspection.overlay import draw_overlay
from edge.part.events import Ended
from edge.part.verdict import Verdict
from edge.record.journal_schema import migrate

WRITE_EVERY = 0.25  # s
RETRY_AFTER = 1.0  # s after a failed write
BLOBS_KEPT = 100  # of each part, the largest
PICTURES_WAITING = 16  # when there are more, the oldest is dropped
DATABASE_WAIT = 5.0  # s for another process that has the database locked


@dataclass(frozen=True)
class PartInfo:
    """What the runtime knows about a part beyond its verdict. It waits in the runtime for the part's outcome."""

    image: str
    frame: Frame | None = None
    inspection: Inspection | None = None
    run: int = 0  # the row of the bundle that inspected it; 0: of the bundle that is live


def draw_picture(path: Path, frame: Frame, inspection: Inspection) -> None:
    """Write the picture of a rejected part, as `draw_overlay` draws it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, draw_overlay(frame, inspection, path.stem))


class Journal:
    """The journal of one line while it runs."""

    def __init__(self, path: Path, *, pictures: bool, quota_mb: float, failing: Callable[[str | None], None],
                 written: Callable[[list[tuple[str, int]]], None] = lambda _: None,
                 wall_clock: Callable[[], float] = time.time,
                 draw: Callable[[Path, Frame, Inspection], None] = draw_picture) -> None:
        """Open the database, create it, or migrate an older one. quota_mb: megabytes that pictures may take.

        failing: gets the reason when writing begins to fail, and None when it works again. written: gets the outcomes
        (run id, trigger) that are on the disk now. wall_clock: s since 1970. draw: writes a picture to a file.

        Raises InputError when the journal cannot be written, or is of a newer version.
        """
        self.rows_written = 0
        self.pictures_written = 0
        self.pictures_dropped = 0
        self.path = path
        self._folder = path.with_name(f"{path.stem}-pictures") if pictures else None
        self._quota = quota_mb * 1e6
        self._tell_failing, self._tell_written = failing, written
        self._wall_clock, self._draw = wall_clock, draw
        self._failing = self._closed = False
        self._run = 0
        self._number = 0  # counts the parts since the start: names pictures, since a part id may come again
        self._clock = wall_clock() - time.monotonic()  # from the line's clock to the wall's
        self._rows: deque[tuple[Any, ...]] = deque()
        self._to_draw: deque[tuple[str, Frame, Inspection]] = deque()
        self._stored: deque[tuple[Path, int]] = deque()  # pictures on the disk, oldest first, with their sizes
        self._stored_bytes = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="journal", daemon=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=DATABASE_WAIT)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            try:
                migrate(self._database, str(path))
            except BaseException:
                self._database.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"cannot write the journal {path}", got=str(error),
                             expected="a SQLite file in a writable folder with room",
                             next="Fix `path` under [journal] in the line file, or make room on the disk.") from error
        if self._folder is not None and self._folder.is_dir():
            old = sorted(self._folder.rglob("*.png"), key=lambda p: p.stat().st_mtime)
            for picture in old:
                self._store(picture)

    def start(self, run: int) -> None:
        """Begin to take parts. run: a row that `add_run` made."""
        self._run = run
        self._thread.start()

    def add_run(self, line: str, bundle: Path, graph_sha256: str, threshold: float) -> int:
        """Enter a bundle that goes live as a row of ``runs``; returns its number. Any thread may call it.

        Raises InputError when it cannot be written.
        """
        try:
            with contextlib.closing(sqlite3.connect(self.path, isolation_level=None,
                                                    timeout=DATABASE_WAIT)) as database:
                cursor = database.execute(
                    "INSERT INTO runs (started, line, bundle, graph_sha256, threshold) VALUES (?, ?, ?, ?, ?)",
                    (self._wall_clock(), line, str(bundle), graph_sha256, threshold))
        except sqlite3.Error as error:
            raise InputError(f"cannot write the journal {self.path}", got=str(error),
                             next="Make room on the disk.") from error
        return int(cursor.lastrowid or 0)

    def switch(self, run: int) -> None:
        """Another bundle is live: parts that no bundle has inspected belong to its row from now on."""
        self._run = run

    def part(self, ended: Ended, info: PartInfo | None = None) -> None:
        """Take the outcome of a part; returns at once."""
        info = info or PartInfo("")
        self._number += 1
        run = info.run or self._run
        picture, blobs = None, None
        if ended.verdict is not Verdict.UNINSPECTED:
            blobs = info.inspection.blobs[:BLOBS_KEPT] if info.inspection is not None else []
        if (self._folder is not None and ended.verdict is Verdict.REJECT
                and info.frame is not None and info.inspection is not None):
            day = time.strftime("%Y-%m-%d", time.localtime(ended.ended + self._clock))
            picture = f"{day}/run-{run}-{self._number:06d}-part-{ended.part}.png"
            self._to_draw.append((picture, info.frame, info.inspection))
            if len(self._to_draw) > PICTURES_WAITING:
                self._to_draw.popleft()
                self.pictures_dropped += 1
        self._rows.append((run, ended.part, ended.triggered + self._clock, ended.ended + self._clock, ended.encoder,
                           ended.verdict.value, None if ended.cause is None else ended.cause.value, ended.score,
                           info.image or None, blobs, picture, (ended.run_id, ended.trigger)))

    @property
    def rows_waiting(self) -> int:
        """Rows that are not on the disk yet."""
        return len(self._rows)

    def _loop(self) -> None:
        while not self._stopping.wait(RETRY_AFTER if self._failing else 0 if self._to_draw else WRITE_EVERY):
            self._write_rows()
            self._draw_picture()

    def _write_rows(self) -> None:
        count = len(self._rows)
        if not count:
            return
        try:
            rows = list(self._rows)[:count]
            batch = [(*row[:9], None if row[9] is None else json.dumps([asdict(blob) for blob in row[9]]), row[10],
                      "-".join(map(str, row[11]))) for row in rows]
            self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT INTO parts (run, part, triggered, ended, encoder, verdict, cause, score, image, blobs, "
                "picture, outcome) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (outcome) DO NOTHING", batch)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            if not self._failing:
                self._tell_failing(f"the journal {self.path} cannot be written: {error}; its rows wait in memory. "
                                   "Make room on the disk.")
            self._failing = True
            return
        for _ in range(count):
            self._rows.popleft()
        self.rows_written += count
        self._tell_written([row[11] for row in rows])
        if self._failing:
            self._tell_failing(None)
        self._failing = False

    def _draw_picture(self) -> None:
        """Draw one picture: rows are written between two of them."""
        if self._folder is None or not self._to_draw or self._failing:
            return
        name, frame, inspection = self._to_draw.popleft()
        path = self._folder / name
        try:
            self._draw(path, frame, inspection)
            self._store(path)
            self.pictures_written += 1
        except Exception:  # a picture that cannot be drawn or stored is dropped and counted; rows are still written
            self.pictures_dropped += 1

    def _store(self, picture: Path) -> None:
        """Count a picture that was written, and delete the oldest ones beyond the quota."""
        size = picture.stat().st_size
        self._stored.append((picture, size))
        self._stored_bytes += size
        while self._stored_bytes > self._quota and len(self._stored) > 1:
            oldest, size = self._stored.popleft()
            oldest.unlink(missing_ok=True)
            self._stored_bytes -= size

    def close(self) -> list[tuple[Any, ...]]:
        """Write what is left and close. Returns the rows that could not be written. A second call does nothing."""
        if self._closed:
            return []
        self._closed = True
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._write_rows()
        while self._to_draw and not self._failing:
            self._draw_picture()
        self._database.close()
        return [(*row[:9], None if row[9] is None else [asdict(blob) for blob in row[9]], row[10])
                for row in self._rows]


def rescue_rows(rows: list[tuple[Any, ...]], folder: Path, tell: Callable[[str], None]) -> None:
    """Write rows that `Journal.close` returned to a file in ``folder``, or anywhere else, or else to the operator."""
    # The cache folder comes before /tmp: systemd deletes a service's /tmp with the service.
    for place in (folder, os.environ.get("CACHE_DIRECTORY"), tempfile.gettempdir()):
        if place is None:
            continue
        try:
            with tempfile.NamedTemporaryFile("w", prefix="lineside-journal-", suffix=".jsonl", delete=False,
                                             dir=place) as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            continue
        tell(f"{len(rows)} rows could not be written to the journal; they are in {file.name}.")
        return
    tell(f"{len(rows)} rows could not be written to the journal, nor anywhere else; here they are:")
    for row in rows:
        tell(json.dumps(row))

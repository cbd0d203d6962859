"""The journal: a row for each part, whatever the disk does."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from itertools import count

import numpy as np
import pytest

from edge.base.errors import InputError
from edge.bundle.rule import Blob
from edge.inspection.inspector import Inspection
from edge.part.events import Ended
from edge.part.verdict import Cause, Verdict
from edge.record.journal import PICTURES_WAITING, Journal, PartInfo, draw_picture
from edge.record.journal_schema import VERSION

TRIGGERS = count(1)


def outcome(part: int, verdict: Verdict = Verdict.REJECT, cause: Cause | None = None) -> tuple[Ended, PartInfo]:
    frame = np.zeros((64, 64, 1), np.uint8)
    grey = np.zeros((64, 64), np.float32)
    inspection = Inspection(verdict, 0.7, 0.5, [Blob((1, 2, 3, 4), 12, None, 0.7)], grey, grey, grey > 1)
    info = PartInfo(f"{part}.png", frame, inspection) if cause is None else PartInfo(f"{part}.png")
    return Ended(part, verdict, cause, 0.7, 1000 + part, time.monotonic() - 0.1, time.monotonic(), next(TRIGGERS),
                 "session"), info


@pytest.fixture
def opened(tmp_path):
    """Opens a journal that takes parts; its ``alarms`` are what it reported about failing."""
    def make(**options) -> Journal:
        alarms: list[str | None] = []
        made = Journal(tmp_path / "journal.db", pictures=True, quota_mb=100, failing=alarms.append, **options)
        made.start(made.add_run("line", tmp_path / "bundle", "abc", 0.5))
        made.alarms = alarms  # type: ignore[attr-defined]
        return made

    return make


@pytest.fixture
def journal(opened):
    return opened()


def rows(path) -> list[tuple]:
    with sqlite3.connect(path) as database:
        columns = "part, verdict, cause, score, image, blobs, picture, encoder, triggered"
        found = database.execute(f"SELECT {columns} FROM parts ORDER BY id").fetchall()
    database.close()
    return found


def test_each_part_has_a_row_and_each_reject_a_picture(journal, tmp_path):
    for part in range(3):
        journal.part(*outcome(part))
    journal.part(*outcome(3, Verdict.PASS))
    journal.part(*outcome(4, Verdict.UNINSPECTED, Cause.NO_FRAME))
    assert journal.close() == []
    found = rows(tmp_path / "journal.db")
    assert [row[:3] for row in found] == [(0, "REJECT", None), (1, "REJECT", None), (2, "REJECT", None),
                                          (3, "PASS", None), (4, "UNINSPECTED", "no-frame")]
    assert json.loads(found[0][5])[0]["box"] == [1, 2, 3, 4] and found[4][5] is None
    pictures = sorted((tmp_path / "journal-pictures").rglob("*.png"))
    assert [str(p.relative_to(tmp_path / "journal-pictures")) for p in pictures] == [row[6] for row in found[:3]]
    assert found[3][6] is None and json.loads(found[3][5]) != [] and abs(found[0][8] - time.time()) < 5


def test_a_full_disk_keeps_rows_and_writes_them_when_there_is_room(journal, tmp_path):
    """The real SQLITE_FULL: the database may not grow by another page."""
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages}")
    for part in range(200):
        journal.part(*outcome(part, Verdict.PASS))
    deadline = time.monotonic() + 10
    while not journal.alarms and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(journal.alarms) == 1 and "full" in journal.alarms[0] and "Make room" in journal.alarms[0]
    assert journal.rows_waiting == 200
    journal._database.execute("PRAGMA max_page_count = 1000000")
    while journal.rows_waiting and time.monotonic() < deadline:
        time.sleep(0.02)
    assert journal.close() == [] and journal.alarms[1:] == [None]
    assert [row[0] for row in rows(tmp_path / "journal.db")] == list(range(200))


def test_rows_that_cannot_be_written_to_the_end_are_handed_back(journal):
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages}")
    for part in range(200):
        journal.part(*outcome(part, Verdict.PASS))
    left = journal.close()
    assert [row[1] for row in left] == list(range(200))


def test_a_journal_that_falls_behind_drops_pictures_and_no_row(opened, tmp_path):
    journal = opened(draw=lambda path, frame, inspection: (time.sleep(0.05), draw_picture(path, frame, inspection)))
    for part in range(10 * PICTURES_WAITING):
        journal.part(*outcome(part))
    assert journal.close() == []
    assert len(rows(tmp_path / "journal.db")) == 10 * PICTURES_WAITING
    assert journal.pictures_dropped >= 8 * PICTURES_WAITING
    assert journal.pictures_dropped + journal.pictures_written == 10 * PICTURES_WAITING


def test_the_oldest_pictures_go_when_the_quota_is_used_up(tmp_path):
    journal = Journal(tmp_path / "journal.db", pictures=True, quota_mb=0.02, failing=print)
    journal.start(journal.add_run("line", tmp_path, "abc", 0.5))
    for part in range(12):
        journal.part(*outcome(part))
    journal.close()
    pictures = sorted((tmp_path / "journal-pictures").rglob("*.png"), key=lambda p: int(p.stem.split("-")[-1]))
    assert 1 <= len(pictures) < 12 and pictures[-1].stem.endswith("part-11")
    assert sum(p.stat().st_size for p in pictures) <= 20_000


def test_runs_are_added_to_one_another(journal, tmp_path):
    journal.part(*outcome(1))
    journal.close()
    again = Journal(tmp_path / "journal.db", pictures=False, quota_mb=1, failing=print)
    again.start(again.add_run("line", tmp_path, "abc", 0.5))
    again.part(*outcome(1))
    again.close()
    with sqlite3.connect(tmp_path / "journal.db") as database:
        assert database.execute("SELECT run, part FROM parts ORDER BY id").fetchall() == [(1, 1), (2, 1)]
    database.close()


def test_a_part_id_that_comes_again_gets_a_picture_of_its_own(journal, tmp_path):
    journal.part(*outcome(1))
    journal.part(*outcome(1))
    journal.close()
    pictures = list((tmp_path / "journal-pictures").rglob("*.png"))
    assert len({row[6] for row in rows(tmp_path / "journal.db")}) == 2 == len(pictures)


def test_a_picture_that_cannot_be_drawn_stops_no_row(opened, tmp_path):
    tried = threading.Event()
    journal = opened(draw=lambda *_: tried.set() or 1 / 0)
    journal.part(*outcome(1))
    assert tried.wait(10)
    journal.part(*outcome(2))
    assert journal.close() == [] and len(rows(tmp_path / "journal.db")) == 2 and journal.pictures_dropped == 2


def test_a_place_that_cannot_hold_a_journal_is_named(tmp_path):
    (tmp_path / "no.db").write_text("this is no database, and long enough to be looked at as one" * 20)
    for path in (tmp_path / "no.db", tmp_path):
        with pytest.raises(InputError, match="cannot write the journal"):
            Journal(path, pictures=False, quota_mb=1, failing=print)


@pytest.mark.parametrize("with_outcome", [False, True])
def test_a_journal_from_before_there_were_versions_is_migrated(opened, tmp_path, with_outcome):
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("""CREATE TABLE runs (run INTEGER PRIMARY KEY, started REAL NOT NULL, line TEXT NOT NULL,
            bundle TEXT NOT NULL, graph_sha256 TEXT NOT NULL, threshold REAL NOT NULL)""")
        database.execute(f"""CREATE TABLE parts (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs,
            part INTEGER NOT NULL, triggered REAL NOT NULL, ended REAL NOT NULL, encoder INTEGER, verdict TEXT NOT NULL,
            cause TEXT, score REAL, image TEXT, blobs TEXT, picture TEXT{", outcome TEXT" if with_outcome else ""})""")
        database.execute("INSERT INTO runs VALUES (1, 0, 'line', 'bundle', 'abc', 0.5)")
        database.execute("INSERT INTO parts (run, part, triggered, ended, verdict) VALUES (1, 7, 0, 0, 'PASS')")
    database.close()
    journal = opened()
    twice, info = outcome(8, Verdict.PASS)
    journal.part(twice, info)
    journal.part(twice, info)
    assert journal.close() == []
    with sqlite3.connect(tmp_path / "journal.db") as database:
        found = database.execute("SELECT run, part, outcome IS NULL FROM parts ORDER BY id").fetchall()
        assert found == [(1, 7, 1), (2, 8, 0)]
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
    database.close()


def test_a_journal_of_a_newer_version_is_refused_and_stays_as_it_is(journal, opened, tmp_path):
    journal.part(*outcome(1))
    journal.close()
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(InputError, match=f"newer version of Lineside; got journal version {VERSION + 1}"):
        opened()
    with sqlite3.connect(tmp_path / "journal.db") as database:
        assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION + 1,)
    database.close()

"""Draws what happened around a part: one lane for each signal, time from left to right."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images.files import write_image
from simulation.scenario.reconcile import Evidence, PartRecord, Reconciliation

MOST = 20  # pictures for each run
BEFORE, AFTER = 0.3, 0.6  # s before the trigger and after the part has left
WIDTH, LANE, LEFT, TOP = 1400, 56, 150, 60  # px
LANES = ("trigger", "verdict", "reject command", "ejector", "confirmation", "link", "faults")
INK, FAINT, MARK, FAULT, GOOD = (40, 40, 40), (190, 190, 190), (200, 60, 20), (250, 200, 150), (40, 140, 40)  # RGB
LANE_OF = {"trigger": 0, "taken": 0, "refused": 0, "verdict": 1, "reject": 2, "ejected": 3, "passed": 3, "missed": 3,
           "wrong_part": 3, "confirm": 4, "line_heard": 5, "heartbeat_lost": 5, "heartbeat_back": 5, "session": 5,
           "line_state": 5, "port_lost": 5}


def draw_timelines(folder: Path, result: Reconciliation, evidence: Evidence) -> list[str]:
    """Draw the parts that break a rule, then those that differ from their truth; 20 at most.

    Returns the names of the files.
    """
    broken = {failure.part for failure in result.failures if failure.part is not None}
    chosen = [part for part in result.parts if part.part in broken]
    chosen += [part for part in result.differences if part.part not in broken]
    names = []
    for part in chosen[:MOST]:
        name = f"part-{part.part:06d}.png"
        folder.mkdir(exist_ok=True)
        write_image(folder / name, draw_timeline(part, evidence))
        names.append(f"{folder.name}/{name}")
    return names


def draw_timeline(part: PartRecord, evidence: Evidence) -> NDArray[np.uint8]:
    """Draw one part: uint8 ``[h, w, 3]`` RGB."""
    begin, end = part.triggered - BEFORE, (part.left or part.triggered + 2) + AFTER
    scale = (WIDTH - LEFT - 20) / (end - begin)

    def x(moment: float) -> int:
        return LEFT + round((min(max(moment, begin), end) - begin) * scale)

    picture = np.full((TOP + LANE * len(LANES) + 40, WIDTH, 3), 255, np.uint8)
    cause = f" ({part.cause})" if part.cause else ""
    title = f"part {part.part}: {part.truth}, {part.verdict or 'no verdict'}{cause}, " + (
        f"ejected by {part.ejected_by}" if part.ejected_by else "passed" if part.passed else "still on the belt")
    _write(picture, title, 10, 24, INK, 0.6)
    _write(picture, part.why or part.difference or "", 10, 46, MARK)
    for occurrence in evidence.occurrences:
        if occurrence.ends >= begin and occurrence.begins <= end:
            top = TOP + 6 * LANE
            left = x(occurrence.begins)
            cv2.rectangle(picture, (left, TOP), (max(x(occurrence.ends), left + 3), top + LANE - 6), FAULT, -1)
            _write(picture, f"{occurrence.number + 1} {occurrence.kind}", left + 3, top + 20, INK)
    for number, lane in enumerate(LANES):
        y = TOP + LANE * (number + 1) - 8
        cv2.line(picture, (LEFT, y), (WIDTH - 20, y), FAINT, 1)
        _write(picture, lane, 10, y, INK)
    for entry in evidence.log:
        if begin <= entry["t"] <= end and entry["event"] in LANE_OF:
            _draw_event(picture, entry, x(entry["t"]), part.part)
    for tenth in range(int(np.ceil(begin * 10)), int(end * 10) + 1):
        mark = x(tenth / 10)
        cv2.line(picture, (mark, TOP + LANE * len(LANES)), (mark, TOP + LANE * len(LANES) + 4), INK, 1)
        if tenth % 5 == 0:
            _write(picture, f"{tenth / 10:g} s", mark - 12, TOP + LANE * len(LANES) + 22, INK)
    return picture


def _draw_event(picture: NDArray[np.uint8], entry: dict[str, object], x: int, ours: int) -> None:
    lane, event = LANE_OF[str(entry["event"])], str(entry["event"])
    y = TOP + LANE * (lane + 1) - 8
    mine = entry.get("part") == ours
    colour = MARK if mine or lane == 5 else FAINT
    if mine and event in ("taken", "passed"):
        colour = GOOD
    cv2.line(picture, (x, y), (x, y - (34 if mine or lane == 5 else 14)), colour, 2)
    text = {"verdict": entry.get("verdict"), "ejected": entry.get("by"),
            "line_state": entry.get("state")}.get(event, event)
    if (mine and event != "trigger") or lane == 5:
        _write(picture, str(text), x + 3, y - (22 if event in ("taken", "line_state") else 8), colour)
    elif event in ("trigger", "ejected"):
        _write(picture, str(entry["part"]), x + 2, y - 2, MARK if mine else FAINT)


def _write(picture: NDArray[np.uint8], text: str, x: int, y: int, colour: tuple[int, int, int],
           size: float = 0.42) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)

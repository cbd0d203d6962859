"""Draws the contact sheet of a camera test: pictures, histogram, intervals, focus and level at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError
from edge.images.files import write_image
from edge.tools.camera_test.album import AT_0, AT_255, BOX, EVEN, Picture
from edge.tools.camera_test.report import intervals
from edge.tools.camera_test.trial import Tried

Canvas = NDArray[np.uint8]
Colour = tuple[int, int, int]
Area = tuple[int, int, int, int]  # left, top, width, height in px

MARGIN, GAP = 28, 14  # px
WIDTH = 2 * MARGIN + EVEN * BOX[0] + (EVEN - 1) * GAP
CAPTION, PLOT = 46, 190  # px high
GROUND, PANEL, GRID = (22, 24, 29), (34, 37, 44), (58, 62, 71)
INK, FAINT, GOOD, WARN, BAD = (234, 236, 240), (152, 159, 170), (92, 200, 140), (245, 184, 76), AT_255
ADVICE_LINES = 5  # at most


def write_sheet(path: Path, tried: Sequence[Tried]) -> None:
    """Write one PNG with the sheets of all cameras below each other. Raises InputError if it cannot be written."""
    sheet = np.concatenate([_draw_camera(one) for one in tried])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, sheet)
    except OSError as error:
        raise InputError(f"cannot write {path}", got=error.strerror, expected="a writable folder with room",
                         next="Choose another --out.") from error


def _draw_camera(tried: Tried) -> Canvas:
    report = tried.report
    advice = report.advice or ["nothing to change"]
    rows = [("What stands out", [(name, picture) for name, picture in tried.album.pictures().items()]),
            ("Over time", [("", picture) for picture in tried.album.evenly()])]
    rows = [(title, pictures) for title, pictures in rows if pictures]
    head, row = 74 + 24 * min(ADVICE_LINES, len(advice)) + 12, 30 + BOX[1] + CAPTION + GAP
    height = MARGIN + head + len(rows) * row + 34 + PLOT + 40 + MARGIN
    canvas = np.full((height, WIDTH, 3), GROUND, np.uint8)
    y = _draw_head(canvas, tried, advice)
    for title, pictures in rows:
        _write(canvas, title, (MARGIN, y + 16), 0.55, FAINT)
        for place, (name, picture) in enumerate(pictures):
            _draw_picture(canvas, (MARGIN + place * (BOX[0] + GAP), y + 30), name, picture)
        y += row
    wide = (WIDTH - 2 * MARGIN - 2 * GAP) // 3
    areas = [(MARGIN + place * (wide + GAP), y + 34, wide, PLOT) for place in range(3)]
    _draw_histogram(canvas, areas[0], tried.album.counts)
    _draw_intervals(canvas, areas[1], tried)
    _draw_course(canvas, areas[2], tried)
    return canvas


def _draw_head(canvas: Canvas, tried: Tried, advice: Sequence[str]) -> int:
    """Returns the y at which the head ends."""
    report = tried.report
    colour, word = (WARN, "SEE BELOW") if report.advice else (GOOD, "GOOD")
    if report.fails:
        colour, word = BAD, "FRAMES LOST"
    size = ""
    if tried.album.size:
        height, width, channels = tried.album.size
        size = f"{width} x {height} {'grey' if channels == 1 else 'colour'}"
    x = _write(canvas, f"Camera {report.camera}", (MARGIN, MARGIN + 22), 0.95, INK, 2)
    _write(canvas, f"{report.kind}   {report.name}   {size}", (x + 24, MARGIN + 21), 0.62, FAINT)
    (wide, _), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 2)
    right = WIDTH - MARGIN
    cv2.rectangle(canvas, (right - wide - 28, MARGIN - 4), (right, MARGIN + 28), colour, -1, cv2.LINE_AA)
    _write(canvas, word, (right - wide - 14, MARGIN + 18), 0.6, GROUND, 2)
    facts = [f"{report.frames} frames in {report.seconds:.1f} s"]
    if report.rate is not None:
        facts.append(f"{report.rate:.2f} per second")
    if report.jitter_ms is not None:
        facts.append(f"jitter p99 {report.jitter_ms.p99:.2f} ms")
    if report.trigger_to_frame_ms is not None:
        facts.append(f"trigger to frame p99 {report.trigger_to_frame_ms.p99:.1f} ms")
    facts += [f"{name} {value}" for name, value in (("lost", report.gaps), ("incomplete", report.incomplete),
                                                    ("unanswered", report.unanswered)) if value is not None]
    if report.exposure_us is not None:
        facts.append(f"exposure {report.exposure_us:g} us")
    _write(canvas, "     ".join(facts), (MARGIN, MARGIN + 56), 0.58, INK)
    y = MARGIN + 74
    colour = WARN if report.advice else GOOD
    for text in advice[:ADVICE_LINES]:
        cv2.circle(canvas, (MARGIN + 5, y + 11), 4, colour, -1, cv2.LINE_AA)
        _write(canvas, text, (MARGIN + 20, y + 16), 0.5, colour, room=WIDTH - 2 * MARGIN - 20)
        y += 24
    return y + 12


def _draw_picture(canvas: Canvas, corner: tuple[int, int], name: str, picture: Picture) -> None:
    x, y = corner
    height, width = picture.small.shape[:2]
    cv2.rectangle(canvas, (x, y), (x + BOX[0] - 1, y + BOX[1] + CAPTION - 1), PANEL, -1)
    left, top = x + (BOX[0] - width) // 2, y + (BOX[1] - height) // 2
    canvas[top:top + height, left:left + width] = picture.small
    end = _write(canvas, name, (x + 8, y + BOX[1] + 18), 0.5, INK) + 10 if name else x + 8
    _write(canvas, f"#{picture.number + 1}  {max(0.0, picture.at):.1f} s", (end, y + BOX[1] + 18), 0.45, FAINT)
    look = picture.look
    end = _write(canvas, f"level {look.level:.0f}   focus {look.focus:.3g}", (x + 8, y + BOX[1] + 37), 0.43, FAINT)
    for share, colour in ((look.high, AT_255), (look.low, AT_0)):
        if share >= 0.0005:
            cv2.circle(canvas, (end + 14, y + BOX[1] + 33), 4, colour, -1, cv2.LINE_AA)
            end = _write(canvas, f"{100 * share:.1f}%", (end + 21, y + BOX[1] + 37), 0.43, colour)


def _draw_axes(canvas: Canvas, area: Area, title: str) -> None:
    x, y, width, height = area
    _write(canvas, title, (x, y - 12), 0.55, FAINT)
    cv2.rectangle(canvas, (x, y), (x + width - 1, y + height - 1), PANEL, -1)
    for quarter in (1, 2, 3):
        cv2.line(canvas, (x, y + height * quarter // 4), (x + width - 1, y + height * quarter // 4), GRID, 1)


def _draw_histogram(canvas: Canvas, area: Area, counts: NDArray[np.float64]) -> None:
    """The height is the square root of the number of pixels, so that even a few clipped ones can be seen."""
    x, y, width, height = area
    _draw_axes(canvas, area, "Grey levels of all images (height: square root of pixels)")
    roots = np.sqrt(counts)
    tops = (y + height - 1 - (height - 8) * roots / max(1e-9, float(roots.max()))).astype(int)
    edges = (x + 8 + np.arange(257) * (width - 16) / 256).astype(int)
    for level in range(256):
        wider = {0: (-6, 0), 255: (0, 6)}.get(level, (0, 0))
        colour = {0: AT_0, 255: AT_255}.get(level, (150, 158, 172))
        if counts[level]:
            cv2.rectangle(canvas, (int(edges[level]) + wider[0], int(tops[level])),
                          (max(int(edges[level]), int(edges[level + 1]) - 1) + wider[1], y + height - 1), colour, -1)
    total = max(1.0, float(counts.sum()))
    _write(canvas, f"at 0: {100 * counts[0] / total:.2f} %", (x, y + height + 20), 0.48, AT_0 if counts[0] else FAINT)
    text = f"at 255: {100 * counts[255] / total:.2f} %"
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.48, 1)
    _write(canvas, text, (x + width - wide, y + height + 20), 0.48, AT_255 if counts[255] else FAINT)


def _draw_intervals(canvas: Canvas, area: Area, tried: Tried) -> None:
    x, y, width, height = area
    taken = tried.taken if tried.report.triggers is None else tried.taken[1:]  # the first trigger was given alone
    apart = intervals(taken)
    clock = "the camera's clock" if tried.report.device_times else "arrival"
    _draw_axes(canvas, area, f"Interval between two frames, by {clock}")
    if not apart:
        _write(canvas, "no two frames in a row", (x + 12, y + height // 2), 0.5, FAINT)
        return
    start, end = taken[0].arrival, taken[-1].arrival
    lost = [one.arrival for one in taken if not one.whole or one.frame.lost]
    for moment in lost:
        at = x + 4 + round((width - 9) * (moment - start) / max(1e-9, end - start))
        cv2.line(canvas, (at, y), (at, y + height - 1), BAD, 1)
    values = np.array([1000 * interval for _, interval in apart])
    middle = float(np.median(values))
    low, high = min(float(values.min()), 0.9 * middle), max(float(values.max()), 1.1 * middle)
    across = [(at - start) / max(1e-9, end - start) for at, _ in apart]
    _draw_line(canvas, area, across, (values - low) / (high - low), GOOD)
    level = y + height - 5 - round((height - 10) * (middle - low) / (high - low))
    for left in range(x + 4, x + width - 4, 12):
        cv2.line(canvas, (left, level), (left + 5, level), INK, 1)
    _write(canvas, f"{high:.1f} ms", (x + 8, y + 16), 0.43, FAINT)
    _write(canvas, f"{low:.1f} ms", (x + 8, y + height - 8), 0.43, FAINT)
    text = f"median {middle:.2f} ms over {end - start:.1f} s"
    end_x = _write(canvas, text, (x, y + height + 20), 0.48, FAINT)
    if lost:
        _write(canvas, "lost or incomplete", (end_x + 20, y + height + 20), 0.48, BAD)


def _draw_course(canvas: Canvas, area: Area, tried: Tried) -> None:
    x, y, _, height = area
    _draw_axes(canvas, area, "Focus and mean level over time")
    looks = tried.album.looks
    if looks:
        ats = np.array([at for at, _ in looks])
        ats = (ats - ats.min()) / max(1e-9, float(np.ptp(ats)))
        focus = np.array([look.focus for _, look in looks])
        _draw_line(canvas, area, ats.tolist(), np.array([look.level for _, look in looks]) / 255, WARN)
        _draw_line(canvas, area, ats.tolist(), focus / max(1e-12, float(focus.max())), GOOD)
    end = _write(canvas, "focus, relative to the best image", (x, y + height + 20), 0.48, GOOD)
    _write(canvas, "mean level, of 255", (end + 24, y + height + 20), 0.48, WARN)


def _draw_line(canvas: Canvas, area: Area, across: Sequence[float], up: NDArray[np.float64], colour: Colour) -> None:
    """Draw a line through points with x and y from 0 to 1."""
    x, y, width, height = area
    points = np.stack([x + 4 + (width - 9) * np.asarray(across), y + height - 5 - (height - 10) * up], axis=1)
    cv2.polylines(canvas, [np.round(points * 16).astype(np.int32)], False, colour, 1, cv2.LINE_AA, 4)
    if len(points) <= width // 8:
        for at in points.round().astype(int):
            cv2.circle(canvas, (int(at[0]), int(at[1])), 2, colour, -1, cv2.LINE_AA)


def _write(canvas: Canvas, text: str, at: tuple[int, int], scale: float, colour: Colour, weight: int = 1,
           room: int | None = None) -> int:
    """Write a line of text, cut off at ``room`` px, and return the x at which it ends. OpenCV can only draw ASCII."""
    text = text.encode("ascii", "replace").decode()

    def wide(text: str) -> int:
        return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)[0][0])

    if room is not None and wide(text) > room:
        while text and wide(text + "...") > room:
            text = text[:-1]
        text += "..."
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, weight, cv2.LINE_AA)
    return at[0] + wide(text)

"""A picture of the parts that a replay decides differently."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images.frames import Frame
from edge.inspection.inspector import Inspection
from edge.inspection.overlay import draw_overlay
from edge.record.replay import Difference

WIDTH = 900  # px for each part


def draw_differences(drawn: Sequence[tuple[Difference, Frame, Inspection]]) -> NDArray[np.uint8]:
    """Draw each part with its map and blobs now and its recorded verdict, two in a row: uint8 RGB ``[H, W, 3]``."""
    cells = [_cell(*one) for one in drawn]
    height = max(cell.shape[0] for cell in cells)
    cells = [np.pad(cell, ((0, height - cell.shape[0] + 12), (0, 12), (0, 0)), constant_values=255) for cell in cells]
    if len(cells) % 2 and len(cells) > 1:
        cells.append(np.full_like(cells[0], 255))
    columns = min(2, len(cells))
    rows = [np.concatenate(cells[start:start + columns], axis=1) for start in range(0, len(cells), columns)]
    return np.concatenate(rows).astype(np.uint8)


def _cell(difference: Difference, frame: Frame, inspection: Inspection) -> NDArray[np.uint8]:
    verdict, _, score = difference.recorded
    overlay = draw_overlay(frame, inspection, "now")
    shape = WIDTH / overlay.shape[1]
    overlay = cv2.resize(overlay, (WIDTH, round(overlay.shape[0] * shape)),
                         interpolation=cv2.INTER_AREA).astype(np.uint8)
    caption = np.full((30, WIDTH, 3), 238, np.uint8)
    text = f"part {difference.part}, {difference.image}: recorded {verdict.value}  score {score:.4f}"
    cv2.putText(caption, text, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([caption, overlay])

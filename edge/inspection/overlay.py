"""Pictures of a verdict: the image, the map in colour, and the image with its blobs outlined."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images.frames import Frame
from edge.inspection.inspector import Inspection
from edge.part.verdict import Verdict

MIN_HEIGHT = 256  # px of a panel; smaller frames are enlarged to keep the text readable
MAX_HEIGHT = 1024
OUTLINE = (255, 40, 40)
INK = {Verdict.REJECT: (200, 30, 30), Verdict.PASS: (20, 130, 60), None: (90, 90, 90)}


def draw_overlay(frame: Frame, inspection: Inspection, title: str = "") -> NDArray[np.uint8]:
    """Three panels side by side below a caption with verdict, score and threshold: uint8 RGB ``[H, W, 3]``.

    The map's colours run from 0 to twice the threshold, so that the threshold always has the same colour (green);
    without a threshold, from the map's minimum to its maximum.
    """
    colour = frame if frame.shape[2] == 3 else np.repeat(frame, 3, axis=2)
    height, width = colour.shape[:2]
    zoom = max(MIN_HEIGHT / height, 1.0) if height < MIN_HEIGHT else min(MAX_HEIGHT / height, 1.0)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    image = cv2.resize(colour, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    low, high = float(inspection.grey.min()), float(inspection.grey.max())
    if inspection.threshold is not None:
        low, high = 0.0, 2 * max(inspection.threshold, 1e-6)
    levels = np.clip((inspection.grey - low) / max(high - low, 1e-9), 0, 1)
    heat = cv2.applyColorMap(cv2.resize((255 * levels).astype(np.uint8), size), cv2.COLORMAP_JET)[:, :, ::-1]
    outlined = image.copy()
    defective = cv2.resize(inspection.defective.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(defective, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(outlined, contours, -1, OUTLINE, 2)
    for blob in inspection.blobs[:20]:
        x, y, w, h = (round(v * zoom) for v in blob.box)
        area = f"{blob.area_px:.0f} px" if blob.area_mm2 is None else f"{blob.area_mm2:.2f} mm2"
        cv2.rectangle(outlined, (x, y), (x + w, y + h), (255, 220, 0), 1)
        cv2.putText(outlined, area, (x, max(12, y - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 220, 0), 1, cv2.LINE_AA)
    gap = np.full((size[1], 4, 3), 255, np.uint8)
    panels = np.concatenate([image, gap, heat, gap, outlined], axis=1)
    caption = np.full((30, panels.shape[1], 3), 255, np.uint8)
    verdict = "no threshold" if inspection.verdict is None else inspection.verdict.value
    text = f"{verdict}  score {inspection.score:.4f}"
    if inspection.threshold is not None:
        text += f"  threshold {inspection.threshold:.4f}"
    cv2.putText(caption, f"{text}  {title}", (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK[inspection.verdict], 1,
                cv2.LINE_AA)
    return np.concatenate([caption, panels]).astype(np.uint8)

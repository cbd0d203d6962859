"""The page of a calibration set: one self-contained file that shows every frame, the most unusual first, for review."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.base.files import write_text_safely
from edge.images.files import read_image

SIDE = 220  # px of the longer side of a thumbnail
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fafafa }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin: 1.6em 0 .6em } p { max-width: 60em }
.frames { display: flex; flex-wrap: wrap; gap: 12px }
label { background: #fff; border: 2px solid #ddd; border-radius: 6px; padding: 8px; width: 224px; font-size: 13px;
  cursor: pointer }
label.out { border-color: #c22; background: #fee } label img { display: block; max-width: 220px; margin: 0 auto 6px }
.unlike { font-weight: 600 } .source { color: #666; overflow-wrap: anywhere }
#command { position: sticky; bottom: 0; background: #222; color: #fff; padding: 12px 16px; border-radius: 6px;
  margin-top: 24px }
code { font: 14px ui-monospace, monospace }
"""
SCRIPT = """
const boxes = [...document.querySelectorAll('input')];
function show() {
  const out = boxes.filter(box => box.checked).map(box => box.value);
  boxes.forEach(box => box.parentElement.classList.toggle('out', box.checked));
  document.getElementById('numbers').textContent = out.length ? out.join(',') : 'none';
}
boxes.forEach(box => box.addEventListener('change', show));
const folder = decodeURI(location.pathname).replace(/\\/index\\.html$/, '');
if (location.protocol === 'file:')
  document.getElementById('set').textContent = /^[\\w\\/.-]+$/.test(folder) ? folder : `'${folder}'`;
show();
"""


def thumbnail(path: Path, place: tuple[float, float]) -> str:
    """A frame as a data URI, with a ring around its most unusual place (x and y in 0..1)."""
    frame = read_image(path)
    scale = SIDE / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    small = np.ascontiguousarray(np.broadcast_to(small.reshape(*size[::-1], -1), (*size[::-1], 3))[..., ::-1])
    cv2.circle(small, (round(place[0] * size[0]), round(place[1] * size[1])), 16, (40, 40, 230), 2, cv2.LINE_AA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def write_page(path: Path, images: Path, source: str, manifest: Mapping[str, Any]) -> None:
    """Write the page of the set whose ``manifest`` lists the frames in the folder ``images``."""
    frames = manifest["frames"]
    groups = [("Unusual: is this a good part?", [f for f in frames if f["stands_out"]]),
              ("The others", [f for f in frames if not f["stands_out"]])]
    body = []
    for title, members in groups:
        if not members:
            continue
        body.append(f"<h2>{title} ({len(members)})</h2><div class=frames>")
        for frame in members:
            number = int(Path(frame["file"]).stem)
            body.append(
                f"<label><img src='{thumbnail(images / frame['file'], tuple(frame['place']))}' alt='frame {number}'>"
                f"<input type=checkbox value={number}> leave out <b>{number}</b><br>"
                f"<span class=unlike>{frame['unlike']:.2f} times the usual distance</span><br>"
                f"<span class=source>{html.escape(frame['source'])}<br>{frame['time']}</span></label>")
        body.append("</div>")
    state = "It has been reviewed." if manifest["reviewed"] else "It has not been reviewed yet."
    text = f"""<!doctype html><html lang=en><meta charset=utf-8><title>Calibration set</title><style>{STYLE}</style>
<h1>Calibration set: {len(frames)} frames from {html.escape(source)}</h1>
<p>{manifest['looked_at']} frames were examined; {manifest['copies']} were copies of another one and
{manifest['near_duplicates']} nearly the same as one. {state} A defect in a calibration set does harm: it widens the
ranges of INT8 and raises thresholds. The most unusual frames come first, with a ring around their most unusual place.
Tick those that are not good parts, then run the command below.</p>
{''.join(body)}
<div id=command><code>lineside collect --out <span id=set>SET</span>
--leave-out <span id=numbers>none</span></code></div>
<script>{SCRIPT}</script></html>
"""
    write_text_safely(path, text.encode(errors="replace").decode())  # a file name may not be valid UTF-8

"""A bundle's ``report.html``: what each precision changes, in figures and pictures, on one self-contained page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BundleError
from edge.base.files import write_text_safely
from edge.engines.openvino import OpenVino
from edge.images.maps import MapArray
from export.gate_frames import LADDER
from export.precisions import Result
from export.quantize import Quantisation
from export.search import WORST, NodeLoss

matplotlib.use("Agg")

FLIPS_SHOWN = 24
SIDE = 160  # px of a picture's longer side
NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "FP16", "int8": "INT8"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
  color: #222; background: #fafafa }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin: 1.8em 0 .5em } p { max-width: 60em }
table { border-collapse: collapse; background: #fff } th, td { border: 1px solid #ddd; padding: 5px 10px;
  text-align: right }
th:first-child, td:first-child { text-align: left } th { background: #f0f0f0; font-weight: 600 }
.yes { color: #17692f; font-weight: 600 } .no { color: #b3261e; font-weight: 600 }
.small { color: #555; font-size: 13px }
.pictures { display: flex; flex-wrap: wrap; gap: 10px }
figure { margin: 0; background: #fff; border: 1px solid #ddd; padding: 6px }
figcaption { font-size: 12px; max-width: 160px; overflow-wrap: anywhere } img { display: block }
"""


def embedded(image: NDArray[np.uint8]) -> str:
    """A picture, BGR uint8 ``[H, W, 3]``, as a data URI."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A prepared image ``[H, W, C]`` as a BGR picture of `SIDE` px."""
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    return np.ascontiguousarray(np.broadcast_to(picture, (size[1], size[0], 3))[..., ::-1])


def heat(values: MapArray, low: float, high: float) -> NDArray[np.uint8]:
    """A map ``[h, w]`` in false colours from ``low`` to ``high``."""
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.asarray(cv2.applyColorMap(small(np.asarray(np.rint(255 * grey), np.uint8)[..., None]),
                                        cv2.COLORMAP_INFERNO), np.uint8)


def chart(draw: Any, size: tuple[float, float] = (6.2, 3.4)) -> str:
    """An image tag with what ``draw(axes)`` draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f"<img src='data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}' alt=''>"


def write_report(made: Quantisation) -> None:
    """Write the page into the bundle. Raises BundleError if the disk is full."""
    results = list(made.results.values())
    card = made.bundle.card
    parts = [
        f"<h1>{html.escape(card.name)}: what each precision changes</h1>",
        f"<p>{html.escape(card.detector)}, {card.input.width}x{card.input.height} px. Compared with float32 on "
        f"{len(made.gate.frames)} "
        f"frames: views of {len(made.gate.good)} good parts that were not fitted on, and scratches and stains painted "
        f"on them by a "
        f"generator that no fit uses, at {len(LADDER)} contrasts from {LADDER[0]:g} to {LADDER[-1]:g} of their full "
        f"strength. A precision "
        "outside the limits is not offered.</p>",
        _remark(made), _table(made, results), _speed(made, results), _nodes(results), _guarantee(made),
        "<h2>Good parts and threshold</h2><div class=pictures>", _scores(made, results), _curves(results), "</div>",
        "<h2>The same frame in each precision</h2>", _samples(made, results), _flips(made, results),
        f"<p class=small>Took {made.seconds / 60:.1f} min. Ranges of INT8 from {made.calibration_frames} frames of "
        f"{html.escape(made.calibration)}.</p>",
    ]
    text = (f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(card.name)}: "
            f"precision</title><style>{STYLE}</style>" + "\n".join(parts) + "</html>\n")
    path = made.bundle.folder / "report.html"
    try:
        write_text_safely(path, text.encode(errors="replace").decode())
    except OSError as error:
        raise BundleError(
            f"cannot write {path}", got=error.strerror, expected="a writable folder with room",
            next="The precisions are in the bundle; for the page, run `lineside quantize` again.") from error


def _table(made: Quantisation, results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        found, name = result.findings, NAMES[result.precision]
        offered = result.precision in made.bundle.offered()
        verdict = "<span class=yes>offered</span>" if offered else "<span class=no>not offered</span>"
        speed = "-" if result.ms_per_image is None else f"{result.ms_per_image:.1f}"
        if found is None:
            cells = ["-"] * 8
        else:
            cells = [f"{found.threshold:.5g}", f"{len(found.flips)} ({len(found.flips) / found.decisions:.2%})",
                     _contrast(found.contrast_50), _contrast(found.contrast_90), f"{found.pixel_auroc:.4f}",
                     f"{found.aupro:.4f}", f"{found.largest_difference:.4f}", f"{found.mean_difference:.5f}"]
        rows.append(f"<tr><td>{name}<td>{verdict}" + "".join(f"<td>{cell}" for cell in [*cells, speed])
                    + f"<td style='text-align:left;max-width:22em'>{html.escape(result.reason)}")
    head = ("precision", "gate", "threshold", "flipped decisions", "50 % found at", "90 % found at", "pixel AUROC",
            "AUPRO", "largest map difference", "mean", "ms/image", "why not")
    return (f"<table><tr>{''.join(f'<th>{text}' for text in head)}</tr>{''.join(rows)}</table><p class=small>Map "
            "differences are shares of float32's range. All precisions were measured on OpenVINO, FP16 with every "
            "node's tensors rounded to float16. AUROC and AUPRO are for the painted defects at full contrast.</p>")


def _remark(made: Quantisation) -> str:
    return f"<p class=no>{html.escape(made.remark)}</p>" if made.remark else ""


def _contrast(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.3f}"


def _speed(made: Quantisation, results: Sequence[Result]) -> str:
    times = {result.precision: result.ms_per_image for result in results if result.ms_per_image is not None}
    chosen = made.bundle.choose("auto", OpenVino.name)
    lines = [f"<h2>Speed</h2><p>Median of single images on OpenVINO, all precisions in turn, on "
             f"{html.escape(made.device)}. <code>--precision auto</code> takes the fastest that is offered: "
             f"<b>{NAMES[chosen]}</b>."]
    int8 = made.results.get("int8")
    if int8 is not None and "int8" in times and "fp32" in times:
        ratio = times["fp32"] / times["int8"]
        share = sum(loss.share for loss in int8.kept)
        lines.append(f" INT8 runs {ratio:.2f} times as fast as float32.")
        if ratio < 2:
            lines.append(f" It is less than 2 because {len(int8.kept)} of {int8.nodes} products, with {share:.0%} of "
                         f"their time in float32, had to stay in {_in_what(int8.kept)}, and other nodes are never in "
                         f"INT8.")
    lines.append(" On a processor, OpenVINO computes FP16 in float32; FP16 is faster on a GPU.</p>")
    return "".join(lines)


def _nodes(results: Sequence[Result]) -> str:
    parts = []
    for result in results:
        if not result.nodes:
            continue
        how = "" if result.searched else " The search ran out of time: with more --minutes there might be more."
        ways = (f" Ranges by {result.ranges}, channels equalised with an exponent of {result.evenness:g}: the first of "
                "the best ways that passed the gate.") if result.ranges else ""
        parts.append(f"<h2>Nodes in {NAMES[result.precision]}</h2><p>{result.nodes - len(result.kept)} of "
                     f"{result.nodes}.{ways}{how}</p>")
        if result.kept:
            rows = "".join(f"<tr><td>{html.escape(loss.name)}<td>{NAMES[loss.precision]}<td>{_noise(loss.error)}"
                           f"<td>{loss.share:.1%}"
                           f"<td>{loss.cost:.1%}" for loss in result.kept)
            parts.append(f"<details><summary>{len(result.kept)} stayed in "
                         f"{_in_what(result.kept)}</summary><table><tr><th>node<th>in<th>noise that it alone adds to "
                         "the map (1: as much as the signal)<th>share of all products' time in float32<th>extra time, "
                         f"as a share of an inference</tr>{rows}</table></details>")
        if result.saturating:
            rows = "".join(f"<tr><td>{html.escape(name)}<td>{share:.2%}" for name, share in result.saturating.items())
            parts.append("<p>These activations leave their range on the gate's defects. The figures above include "
                         "that; a calibration set with more variety widens the "
                         f"range.</p><table><tr><th>activation<th>clipped, at most</tr>{rows}</table>")
    return "".join(parts)


def _in_what(kept: Sequence[NodeLoss]) -> str:
    return " or ".join(NAMES[precision] for precision in sorted({loss.precision for loss in kept}, reverse=True))


def _noise(error: float | None) -> str:
    if error is None:
        return "not measured"
    return "not finite" if error >= WORST else f"{error:.4f}"


def _guarantee(made: Quantisation) -> str:
    rows = []
    for precision in made.bundle.offered():
        limit = made.bundle.threshold(precision, OpenVino.name)
        if limit is not None:
            rows.append(f"<tr><td>{NAMES[precision]}<td>{limit.value:.6g}<td>{limit.false_reject_rate:g}"
                        f"<td>{limit.upper_bound_95:.3f}"
                        f"<td>{limit.good_parts}")
    head = ("precision", "threshold", "good parts rejected, on average at most", "with 95 % confidence below",
            "good parts used")
    titles = "".join(f"<th>{text}" for text in head)
    return (f"<h2>Thresholds on OpenVINO, and what they guarantee</h2><table><tr>{titles}</tr>{''.join(rows)}"
            "</table><p class=small>While parts and light stay the same. On a processor, OpenVINO computes FP16 more "
            "precisely than float16, so its threshold here differs from the one above. If INT8's ranges come from the "
            "same good parts, they were used twice, and INT8's guarantee is weaker.</p>")


def _scores(made: Quantisation, results: Sequence[Result]) -> str:
    def draw(axes: Any) -> None:
        whole = [i for i, frame in enumerate(made.gate.frames) if frame.defect is None]
        for result in results:
            if result.measured is not None and result.findings is not None:
                line = axes.hist(result.measured.scores[whole], 40, histtype="step",
                                 label=NAMES[result.precision])[2][0]
                axes.axvline(result.findings.threshold, color=line.get_edgecolor(), linestyle="--", linewidth=1)
        axes.set(xlabel="score of views of good parts (dashed: threshold)", ylabel="frames")
        axes.legend(frameon=False)

    return chart(draw)


def _curves(results: Sequence[Result]) -> str:
    def draw(axes: Any) -> None:
        for result in results:
            if result.findings is not None:
                axes.plot(LADDER, result.findings.found, marker="o", markersize=3, label=NAMES[result.precision])
        for share in (0.5, 0.9):
            axes.axhline(share, color="#bbb", linewidth=0.8)
        axes.set(xscale="log", xlabel="contrast of painted defects (1: full strength)", ylabel="share found",
                 ylim=(0, 1.02))
        axes.legend(frameon=False)

    return chart(draw)


def _samples(made: Quantisation, results: Sequence[Result]) -> str:
    gate = made.gate
    defects = [i for i in gate.full]
    good = [i for i in gate.looked_at if gate.frames[i].defect is None]
    shown = [*defects[:: max(1, len(defects) // 4)][:4], *good[:2]]
    measured = [result for result in results if result.measured is not None]
    rows = ["<table><tr><th>frame" + "".join(f"<th>{NAMES[result.precision]}" for result in measured) + "</tr>"]
    for i in shown:
        reference = gate.reference.maps[i]
        low, high = float(reference.min()), float(reference.max())
        cells = "".join(f"<td><img src='{embedded(heat(result.measured.maps[i], low, high))}' alt='map'>"
                        f"<span class=small>{result.measured.scores[i]:.4g}</span>" for result in measured
                        if result.measured is not None)
        what = "good" if gate.frames[i].defect is None else "painted defect"
        rows.append(f"<tr><td><img src='{embedded(small(gate.frames[i].image))}' alt='frame'><span class=small>{what}, "
                    f"{html.escape(gate.frames[i].source)}</span>{cells}</tr>")
    return ("".join(rows) + "</table><p class=small>The score is below each map. Colours span float32's map of that "
            "frame.</p>")


def _flips(made: Quantisation, results: Sequence[Result]) -> str:
    parts = []
    for result in results:
        if result.precision == "fp32" or result.findings is None or result.measured is None:
            continue
        flips = result.findings.flips
        parts.append(f"<h2>Decisions flipped in {NAMES[result.precision]}: {len(flips)} of "
                     f"{result.findings.decisions}</h2>")
        if not flips:
            continue
        reference, measured = made.gate.reference, result.measured
        far = sorted(flips, key=lambda i: -abs(measured.scores[i] / measured.threshold
                                               - reference.scores[i] / reference.threshold))
        parts.append("<div class=pictures>")
        for i in far[:FLIPS_SHOWN]:
            frame = made.gate.frames[i]
            what = "good part" if frame.defect is None else f"defect at contrast {frame.contrast:.2f}"
            turn = "PASS &rarr; REJECT" if measured.scores[i] > measured.threshold else "REJECT &rarr; PASS"
            before, after = reference.scores[i] / reference.threshold, measured.scores[i] / measured.threshold
            parts.append(f"<figure><img src='{embedded(small(frame.image))}' alt='frame'><figcaption><b>{turn}</b><br>"
                         f"{what}<br>{before:.3f} &rarr; {after:.3f} of the "
                         f"threshold<br>{html.escape(frame.source)}</figcaption></figure>")
        parts.append("</div>")
        if len(flips) > FLIPS_SHOWN:
            parts.append(f"<p class=small>The {FLIPS_SHOWN} of {len(flips)} whose scores changed most.</p>")
    return "".join(parts)

"""The accuracy benchmark's output: tables beside the papers' figures, and for each set a picture with every detector's
maps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calib.metrics import LabelledImage, smoothing
from detectors.registry import detector_class
from edge.base.files import write_text_safely
from edge.bundle.bundle import Bundle
from edge.bundle.rule import smooth
from edge.images.files import read_image
from edge.images.maps import MapArray
from edge.inspection.inspector import Inspector

FULL = "full"  # the variant with nothing removed
FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "pixel_ap": "pixel AP"}
# MVTec AD, official split: images of train/good, test/good and defective.
OFFICIAL = {
    "carpet": (280, 28, 89), "grid": (264, 21, 57), "leather": (245, 32, 92), "tile": (230, 33, 84),
    "wood": (247, 19, 60),
    "bottle": (209, 20, 63), "cable": (224, 58, 92), "capsule": (219, 23, 109), "hazelnut": (391, 40, 70),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141), "screw": (320, 41, 119), "toothbrush": (60, 12, 30), "transistor": (213, 60, 40),
    "zipper": (240, 32, 119),
}
NOTES = """- AUROC, average precision (AP), and AUPRO up to a false-positive rate of 0.3, as `lineside evaluate`
  calculates them: pixel figures on the smoothed map at its own size, without defective images whose mask is missing or
  black.
- GFLOPs: one image through the network; a multiply-add counts as two. Parameters include a frozen backbone's.
- ms: from frame to score as at the line, median over single test images: the bundle's float32 graph on OpenVINO with
  {threads} CPU threads.
- Paper: its image AUROC / pixel AUROC / PRO for the MVTec AD set of the same name, with its own schedule on a GPU and
  the official split. † marks a set whose image counts differ from that split: other images, other tiles, not the same
  task. Equal counts do not prove that the images are the original ones at their original size."""

COLUMNS = 8  # images in a montage
CELL = 1.9  # inches
LONGEST = 400  # px of an image's longer side in the picture
COLOURS = ("map: dark blue is the median of the good test images' pixels, green their 99.9th percentile, "
           "dark red twice as far")


@dataclass(frozen=True)
class Heat:
    """A detector's smoothed maps ``[h, w]`` of the picked images, and the levels of its colour scale."""

    maps: Sequence[MapArray]
    usual: float  # median over the pixels of the good test images
    high: float  # their 99.9th percentile

    def levels(self, index: int) -> NDArray[np.float32]:
        """A map scaled to 0..1: 0 is the median of good images, 0.5 their 99.9th percentile."""
        scale = 2 * max(self.high - self.usual, 1e-12)
        return np.asarray(np.clip((self.maps[index] - self.usual) / scale, 0, 1), dtype=np.float32)

    def write(self, path: Path) -> None:
        """Write a NumPy archive."""
        np.savez_compressed(path, maps=np.stack(self.maps), usual=self.usual, high=self.high)

    @staticmethod
    def read(path: Path) -> Heat:
        """Read an archive of `write`."""
        with np.load(path) as data:
            return Heat(list(data["maps"]), float(data["usual"]), float(data["high"]))


def take_heat(bundle: Bundle, images: Sequence[LabelledImage]) -> tuple[Heat, float]:
    """The maps of the picked test images, and the median time from frame to score over all test images in ms."""
    steps = smoothing(bundle.decision.post_filter)
    shown = pick(images)
    maps, good, seconds = {}, [], []
    with Inspector(bundle) as inspector:
        inspector.warm_up()
        for index, image in enumerate(images):
            frame = read_image(image.path)
            start = time.perf_counter()
            inspection = inspector.inspect(frame, None)
            seconds.append(time.perf_counter() - start)
            if index in shown:
                maps[index] = smooth(inspection.raw, steps)
            if image.defect == "good":
                good.append(smooth(inspection.raw, steps).ravel()[::3])  # every third pixel is enough
    usual, high = np.quantile(np.concatenate(good), [0.5, 0.999]) if good else (0.0,
                                                                                max(float(m.max())
                                                                                    for m in maps.values()) / 2)
    return Heat([maps[index] for index in shown], float(usual), float(high)), 1000 * float(np.median(seconds))


def pick(images: Sequence[LabelledImage]) -> list[int]:
    """Which test images are shown: the first good one and some of each defect, spread over their names, since
    neighbours look alike.
    """
    kinds: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        kinds.setdefault(image.defect, []).append(index)
    good = kinds.pop("good", [])[:1]
    rounds = [members[len(members) * eighth // 8] for eighth in (0, 4, 2, 6, 1, 5, 3, 7) for members in kinds.values()]
    return good + sorted(list(dict.fromkeys(rounds))[:COLUMNS - len(good)])


def shrunk(path: Path, nearest: bool = False) -> NDArray[np.uint8]:
    """An image file, shrunk to at most `LONGEST` px: uint8 RGB ``[h, w, 3]``."""
    frame = read_image(path)
    scale = min(1.0, LONGEST / max(frame.shape[:2]))
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_AREA)
    small = small.reshape(size[1], size[0], -1)
    return np.asarray(np.broadcast_to(small, (size[1], size[0], 3)), dtype=np.uint8)


def draw_montage(path: Path, title: str, images: Sequence[LabelledImage], heats: Mapping[str, Heat]) -> None:
    """Write a PNG with a column for each picked image: the image, its outlined truth, and a row for each detector's
    map.
    """
    rows = 2 + len(heats)
    width, height = CELL * len(images) + 1.3, CELL * rows + 0.9
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, len(images), squeeze=False)
    figure.subplots_adjust(1.25 / width, 0.35 / height, 1 - 0.05 / width, 1 - 0.55 / height, 0.04, 0.04)
    figure.suptitle(title, x=0.5, y=1 - 0.18 / height, va="center", fontsize=12)
    figure.text(0.5, 0.16 / height, COLOURS, ha="center", va="center", fontsize=9)
    for row, label in enumerate(["image", "truth", *heats]):
        box = axes[row][0].get_position()
        figure.text(1.15 / width, (box.y0 + box.y1) / 2, label, ha="right", va="center", fontsize=9)
    for column, image in enumerate(images):
        frame = shrunk(image.path)
        bottom, right = frame.shape[:2]
        for axis in axes[:, column]:
            axis.set_axis_off()
        axes[0][column].set_title(image.defect, fontsize=10)
        for axis in axes[:2, column]:
            axis.imshow(frame)
        if image.mask is not None:
            mask = shrunk(image.mask, nearest=True)[..., 0]
            if mask.any():
                grid = (np.linspace(0, right - 1, mask.shape[1]), np.linspace(0, bottom - 1, mask.shape[0]))
                axes[1][column].contour(*grid, mask > mask.max() / 2, levels=[0.5], colors=["#ff2828"], linewidths=1.2)
        elif image.defect != "good":
            axes[1][column].text(right / 2, bottom / 2, "no truth", ha="center", va="center", color="#ff2828")
        for axis, heat in zip(axes[2:, column], heats.values(), strict=True):
            axis.imshow(heat.levels(column), cmap=colormaps["jet"], vmin=0, vmax=1, extent=(0, right, bottom, 0))
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, format="png", dpi=100)
    temporary.replace(path)


def label(row: Mapping[str, Any]) -> str:
    """The label of a detector's row: its name and its figures."""
    known = {word: row[f"{word}_auroc"] for word in ("image", "pixel") if row[f"{word}_auroc"] is not None}
    return "\n".join([row["detector"], *(f"{word} {value:.3f}" for word, value in known.items())])


# --- Tables ---


def paper_figures(row: Mapping[str, Any]) -> dict[str, float | bool] | None:
    """The paper's figures for a row's set, and whether the set has as many images as the official split."""
    found = detector_class(row["detector"]).published.get(row["set"])
    if found is None or row["variant"] != FULL:
        return None
    names = ("pixel_auroc",) if len(found) == 1 else ("image_auroc", "pixel_auroc", "aupro")
    same = OFFICIAL[row["set"]] == (row.get("train_good"), row.get("good"), row.get("defective"))
    return {**dict(zip(names, found, strict=True)), "official_split": same}


def mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over rows; None if no row has it."""
    result: dict[str, Any] = {"sets": len(rows)}
    for name in FIGURES:
        values = [row[name] for row in rows if row[name] is not None]
        result[name] = sum(values) / len(values) if values else None
    return result


def averages(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Averages over the sets, for each detector and for the best detector of each set."""
    done = [row for row in rows if row["status"] == "done" and row["variant"] == FULL]
    result = {name: mean([row for row in done if row["detector"] == name])
              for name in dict.fromkeys(row["detector"] for row in done)}
    sets = [[row for row in done if row["set"] == name] for name in dict.fromkeys(row["set"] for row in done)]
    by_image = [max(rows, key=lambda row: (row["image_auroc"] or 0, row["pixel_auroc"] or 0)) for rows in sets]
    each = [{name: max((row[name] for row in rows if row[name] is not None), default=None) for name in FIGURES}
            for rows in sets]
    if sets:
        result |= {"best of each set, by image AUROC": mean(by_image), "best of each set, figure by figure": mean(each)}
    return result


def ablations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The effect of each part of a detector on each set: the figures without it, and their difference to the whole
    detector.
    """
    whole = {(row["set"], row["detector"]): row for row in rows if row["status"] == "done" and row["variant"] == FULL}
    result = []
    for row in rows:
        if row["status"] == "done" and row["variant"] != FULL:
            full = whole.get((row["set"], row["detector"]), {})
            effect = {name: None if row[name] is None or full.get(name) is None else row[name] - full[name]
                      for name in ("image_auroc", "pixel_auroc")}
            result.append({**{name: row[name] for name in ("set", "detector", "variant", *FIGURES)},
                           "difference": effect})
    return result


def build_report(settings: Mapping[str, Any], rows: Sequence[dict[str, Any]],
                 montages: Mapping[str, str]) -> dict[str, Any]:
    """The report as it is written to JSON. A row's ``status`` is done, failed, or how far the job got."""
    def title(row: Mapping[str, Any]) -> str:
        return f"{row['detector']} on {row['set']}" + ("" if row["variant"] == FULL else f", {row['variant']}")

    return {
        "settings": dict(settings), "rows": [{**row, "paper": paper_figures(row)} for row in rows],
        "averages": averages(rows),
        "ablations": ablations(rows), "montages": dict(montages),
        "cut_short": [f"{title(row)}: {row['status']}" for row in rows if row["status"] not in ("done", "failed")],
        "failed": [f"{title(row)}: {row['error']}" for row in rows if row["status"] == "failed"],
        "sources": sorted({row["sources"] for row in rows if row["status"] == "done"}),
    }


def number(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table of figures."""
    paper = row["paper"] or {}
    figures = " / ".join(number(paper.get(name)) for name in ("image_auroc", "pixel_auroc", "aupro")) if paper else ""
    head = [row["set"], row["detector"]]
    if row["status"] != "done":
        return [*head, row["status"], "", "", "", figures, "", "", "", "", ""]
    official = "" if not figures or paper["official_split"] else " †"
    return [*head, *(number(row[name]) for name in FIGURES), figures + official, f"{row['minutes']:.1f}",
            str(row["steps"]), f"{row['parameters']:,}", f"{row['gflops']:.3g}", f"{row['ms_per_image']:.1f}"]


HEAD = ["set", "detector", *FIGURES.values(), "paper", "minutes", "steps", "parameters", "GFLOPs", "ms"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    done = [row for row in report["rows"] if row["status"] == "done"]
    parts = ["# Accuracy", f"Each detector fitted on the good images of each set: {settings}."]
    for title, lines in (("Cut short. These are not done; the same command goes on with them:", report["cut_short"]),
                         ("Failed:", report["failed"])):
        if lines:
            parts.append("\n".join([f"**{title}**", "", *(f"- {' '.join(line.split())}" for line in lines)]))
    if len(report["sources"]) > 1:
        parts.append(f"**The code changed between these figures**: {len(report['sources'])} states of it, `sources` in "
                     "the JSON.")
    parts.append(table(HEAD, [cells(row) for row in report["rows"] if row["variant"] == FULL]))
    parts.append(NOTES.format(threads="/".join(sorted({str(row["threads"]) for row in done})) or "all"))
    if report["averages"]:
        rows = [[name, str(row["sets"]), *(number(row[figure]) for figure in FIGURES)] for name,
                row in report["averages"].items()]
        parts.append(f"## Averages over the sets\n\n{table(['detector', 'sets', *FIGURES.values()], rows)}")
        parts.append("The best of each set is chosen on the test images: an upper bound, not what a user would have "
                     "found.")
    if report["ablations"]:
        rows = [[row["set"], row["detector"], row["variant"], number(row["image_auroc"]),
                 number(row["difference"]["image_auroc"], True), number(row["pixel_auroc"]),
                 number(row["difference"]["pixel_auroc"], True)] for row in report["ablations"]]
        head = ["set", "detector", "variant", "image AUROC", "difference", "pixel AUROC", "difference"]
        parts.append(f"## Ablations\n\n{table(head, rows)}\n\nDifferences to the whole detector: negative where the "
                     "part helps.")
    if report["montages"]:
        pictures = "\n\n".join(f"![{name}]({file})" for name, file in report["montages"].items())
        parts.append(f"## Pictures\n\nTest images taken by their names alone, not by result.\n\n{pictures}")
    return "\n\n".join(parts) + "\n"


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page, and a JSON file with its figures beside it."""
    write_text_safely(path, markdown(report))
    write_text_safely(path.with_suffix(".json"), json.dumps(report, indent=1) + "\n")


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the figures; the page has more columns."""
    shown = Table("set", "detector", "image", "pixel", "AUPRO", "AP", "min", "ms")
    for row in report["rows"]:
        line = cells(row)
        name = line[1] if row["variant"] == FULL else f"{line[1]} {row['variant']}"
        shown.add_row(line[0], name, *line[2:6], line[7], line[11])
    console.print(shown)

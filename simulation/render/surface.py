"""Endless surfaces to inspect: a woven web and printed parts under drifting light, with labelled defects and exact
masks.

A frame is a pure function of the seed and the part's index: nothing is stored and nothing repeats.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError
from edge.images.files import write_image
from simulation.render.defects import DEFECTS, Field, changed_pixels, draw_flaw, is_visible
from simulation.render.textures import Cloth, Print

KINDS = ("woven", "printed")
MIN_SIZE = 64  # px
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RenderedPart:
    """One part: ``frame`` uint8 ``[H, W, C]``, ``mask`` uint8 ``[H, W]`` (0 or 255), ``label`` "good" or the defect's
    name.
    """

    frame: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    label: str


class Surface:
    """An endless supply of parts of one product: ``kind`` "woven" (grey web) or "printed" (RGB parts on a belt).

    ``size`` is a frame's width and height (px, at least 64): a larger web frame shows more threads, a larger part is
    printed larger, and defects grow with it. With ``turned``, printed parts are shifted by up to 8 % of the size and
    turned by up to 15 degrees; a web is not affected. ``defects`` names the defects of this kind. Frames are equal to
    the last bit on one version of NumPy and OpenCV; another OpenCV may draw letters differently.

    Raises InputError for an unknown kind, a size below 64 or a negative seed.
    """

    def __init__(self, kind: str, seed: int, size: int = 256, turned: bool = False) -> None:
        if kind not in KINDS:
            raise InputError("unknown kind of surface", got=repr(kind), expected=" or ".join(KINDS),
                             next="Name one of these.")
        if size < MIN_SIZE:
            raise InputError("the frame is too small to render", got=f"size {size} px",
                             expected=f"at least {MIN_SIZE} px", next="Choose a larger size, such as 256.")
        if seed < 0:
            raise InputError("a seed cannot be negative", got=seed, expected="0 or more", next="Choose another seed.")
        self.kind, self.seed, self.size, self.turned = kind, seed, size, turned
        self.defects: tuple[str, ...] = DEFECTS[kind]
        # glibc returns the pages of freed arrays and faults them in again, which takes half of the time of a part. It
        # keeps
        # them after it has freed one large block (mallopt(3), M_MMAP_THRESHOLD is dynamic). The block is never touched.
        np.empty(1 << 24, np.uint8)
        self._product: Cloth | Print = Cloth(seed, size) if kind == "woven" else Print(seed, size, turned)

    def part(self, index: int, defect: str | None = None) -> RenderedPart:
        """Render part ``index`` (0 or more), good or with a ``defect``: uint8 ``[size, size, C]``, C = 1 woven, 3 (RGB)
        printed.

        A pure function of the surface's arguments, ``index`` and ``defect``; the good and the defective part of an
        index are the same piece under the same light and noise. The mask is 255 exactly where the noise-free frames of
        the two differ by more than 4 grey levels in any channel. Raises InputError for a negative index or a defect
        that this kind does not have.
        """
        index = int(index)  # a NumPy integer could overflow in px along the web
        if index < 0:
            raise InputError("a part's index cannot be negative", got=index, expected="0 or more",
                             next="Count parts from 0.")
        if defect is not None and defect not in self.defects:
            raise InputError(f"a {self.kind} surface has no such defect", got=repr(defect),
                             expected=", ".join(self.defects), next="Name one of these, or None for a good part.")
        clean, mask = self._clean(index, defect)
        frame = np.random.default_rng([self.seed, 4, index]).standard_normal(clean.shape, np.float32)
        frame *= np.sqrt(1.0 + 0.02 * clean)  # read noise and shot noise, grey levels
        frame += clean
        frame = np.clip(np.rint(frame, out=frame), 0, 255, out=frame)
        return RenderedPart(np.ascontiguousarray(frame.astype(np.uint8).transpose(1, 2, 0)), mask, defect or "good")

    def _clean(self, index: int, defect: str | None) -> tuple[Field, NDArray[np.uint8]]:
        """The noise-free frame before rounding, float32 ``[C, size, size]`` from 0 to 255, and the mask."""
        piece, light = self._product.piece(index), self._light(index)
        good = np.clip(piece.reflectance(None) * light, 0, 255)
        if defect is None:
            return good, np.zeros((self.size, self.size), np.uint8)
        for attempt in range(64):  # until it is neither too faint, nor too small, nor too large
            rng = np.random.default_rng([self.seed, 6, index, self.defects.index(defect), attempt])
            flaw = draw_flaw(defect, rng, *self._product.half, self.size)
            bad = np.clip(piece.reflectance(flaw) * light, 0, 255)
            changed = changed_pixels(good, bad)
            if is_visible(good, bad, changed):
                return bad, changed.astype(np.uint8) * np.uint8(255)
        # a defect of the renderer: see the ranges in draw_flaw
        raise AssertionError(f"no visible {defect} in 64 draws")

    def _light(self, index: int) -> Field:
        """The grey levels of a white surface, float32 ``[size, size]``: the light drifts slowly with the index, by +-10
        %.
        """
        phase = np.random.default_rng([self.seed, 5]).uniform(0, 2 * math.pi, 3)
        gain = 1 + 0.07 * math.sin(index / 38.3 + phase[0]) + 0.03 * math.sin(index / 8.9 + phase[1])
        lean = index / 61.7 + phase[2]
        axis = np.linspace(-1, 1, self.size, dtype=np.float32)
        x, y = axis[None, :], axis[:, None]
        slope = 1 + 0.05 * (math.cos(lean) * x + math.sin(lean) * y) - 0.04 * (x * x + y * y)
        return slope * np.float32(255 * gain)


# --- Folders of parts ---


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling that becomes ``out`` when the block succeeds, and is removed when it fails."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"will not write over {out}", got="a folder that is not empty" if out.is_dir() else "a file",
                         expected="a new or an empty folder", next="Remove it, or name another folder.")
    temporary = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with our number
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)  # also over an empty folder
    except OSError as error:
        raise InputError(f"cannot write {out}", got=error.strerror or str(error),
                         expected="a writable folder with room for it",
                         next="Free some space, or name another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def render_folder(out: Path, surface: Surface, *, train_good: int, test_good: int, defective: int,
                  progress: Progress | None = None) -> None:
    """Render a data set in the MVTec AD layout into ``out``, a new or empty folder; it is complete or does not appear.

    ``train/good/00000.png`` ..., ``test/good/``, ``test/<defect>/`` and ``ground_truth/<defect>/00000_mask.png`` (0 or
    255). ``defective`` counts all defective parts together, spread evenly over the surface's defects. Part indices run
    on through train, test good and defective, so no part appears twice. ``progress(done, total)`` is called after each
    part. Raises InputError for a non-empty ``out``, a negative count, or where it cannot write.
    """
    counts = {"train_good": train_good, "test_good": test_good, "defective": defective}
    for name, count in counts.items():
        if count < 0:
            raise InputError(f"{name} cannot be negative", got=count, expected="0 or more parts",
                             next=f"Change {name}.")
    names = [surface.defects[i % len(surface.defects)] for i in range(defective)]
    places = [(None, f"train/good/{i:05d}.png") for i in range(train_good)]
    places += [(None, f"test/good/{i:05d}.png") for i in range(test_good)]
    wanted = places + [(name, f"test/{name}/{i // len(surface.defects):05d}.png") for i, name in enumerate(names)]
    with _new_folder(out) as folder:
        for index, (defect, place) in enumerate(wanted):
            part, path = surface.part(index, defect), folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, part.frame)
            if defect is not None:
                truth = folder / "ground_truth" / defect / f"{path.stem}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                write_image(truth, part.mask)
            if progress is not None:
                progress(index + 1, len(wanted))


def render_sequence(out: Path, surface: Surface, *, parts: int, defect_rate: float, first_index: int = 100_000,
                    progress: Progress | None = None) -> list[dict[str, str | int]]:
    """Render ``parts`` consecutive parts as a line sees them into ``out``, a new or empty folder; it is complete or
    does not appear.

    ``frames/part-000000.png`` ..., ``masks/part-000000.png`` for defective parts alone, and ``parts.csv``, whose rows
    are returned: part (order of arrival, from 0), file (below ``out``), label, defect_px. ``first_index`` is the index
    of the first part. Exactly ``round(parts * defect_rate)`` parts are defective; which, and with what, is drawn from
    the surface's seed and ``first_index``. ``progress(done, total)`` is called after each part. Raises InputError for a
    non-empty ``out``, a negative count or index, a rate outside 0 to 1, or where it cannot write.
    """
    if parts < 0 or first_index < 0:
        raise InputError("parts and first_index cannot be negative", got=f"{parts} parts from {first_index}",
                         expected="0 or more", next="Change them.")
    if not 0 <= defect_rate <= 1:
        raise InputError("defect_rate is a share of the parts", got=defect_rate, expected="0 to 1",
                         next="Give 2 % as 0.02.")
    rng = np.random.default_rng([surface.seed, 7, first_index])
    chosen = rng.choice(parts, round(parts * defect_rate), replace=False) if parts else np.zeros(0, np.int64)
    defects = {int(number): str(rng.choice(surface.defects)) for number in chosen}
    rows: list[dict[str, str | int]] = []
    with _new_folder(out) as folder:
        (folder / "frames").mkdir()
        (folder / "masks").mkdir()
        for number in range(parts):
            part, name = surface.part(first_index + number, defects.get(number)), f"part-{number:06d}.png"
            write_image(folder / "frames" / name, part.frame)
            if number in defects:
                write_image(folder / "masks" / name, part.mask)
            rows.append({"part": number, "file": f"frames/{name}", "label": part.label,
                         "defect_px": int((part.mask > 0).sum())})
            if progress is not None:
                progress(number + 1, parts)
        with (folder / "parts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["part", "file", "label", "defect_px"])
            writer.writeheader()
            writer.writerows(rows)
    return rows

"""How well a bundle tells good from bad on labelled images: AUROC, AUPRO, average precision, false rejects and
escapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError
from edge.bundle.bundle import Bundle
from edge.bundle.rule import parse_step, smooth
from edge.engines.engine import Precision
from edge.images.files import list_images, read_image
from edge.images.maps import MapArray
from edge.inspection.choice import Choice, pick_backend
from edge.inspection.inspector import Inspector

AUPRO_FPR = 0.3


@dataclass(frozen=True)
class LabelledImage:
    """An image of a labelled set. ``mask`` is None for a good image, or if the set has no ground truth for it."""

    path: Path
    defect: str  # "good" or the folder's name
    mask: Path | None


@dataclass(frozen=True)
class Evaluation:
    """Figures of a bundle on a labelled set; None if they cannot be calculated (no threshold, no masks, one class
    only).
    """

    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    pixel_ap: float | None
    false_reject_rate: float | None
    escape_rate: float | None
    good: int
    defective: int
    unmarked: int  # defective images with no mask or a black one: excluded from the pixel figures
    false_rejects: int | None
    escapes: int | None
    threshold: float | None
    ms_per_image: float


def labelled_images(data: Path) -> list[LabelledImage]:
    """The test images of an MVTec-AD-style folder: ``test/good``, ``test/<defect>``,
    ``ground_truth/<defect>/<name>_mask.png``.
    """
    if not (data / "test").is_dir():
        raise InputError(f"no test images in {data}", got="no folder 'test'" if data.is_dir() else "no such folder",
                         expected="test/good/ and test/<defect>/ (MVTec AD layout)")
    images = []
    for path in list_images(data / "test"):
        defect = path.relative_to(data / "test").parts[0]
        if defect == path.name:
            raise InputError(f"{path} is in no folder named after what it shows",
                             expected="test/good/ or test/<defect>/")
        truth = data / "ground_truth" / defect
        masks = [p for p in (truth / f"{path.stem}_mask.png", truth / f"{path.stem}.png") if p.is_file()]
        if defect != "good" and truth.is_dir() and not masks:
            raise InputError(f"{path} has no mask", expected=f"{truth / path.stem}_mask.png",
                             next="Add it, or remove the folder ground_truth to do without pixel figures.")
        images.append(LabelledImage(path, defect, masks[0] if masks and defect != "good" else None))
    return images


def read_mask(path: Path, frame_size: tuple[int, int], map_size: tuple[int, int]) -> NDArray[np.bool_]:
    """A ground-truth mask at the map's size (height, width), nearest neighbour; if nothing is left of a defect that
    way, every px that it touches.
    """
    mask = read_image(path).max(axis=2)
    if mask.shape != frame_size:
        raise InputError(f"{path} does not fit its image", got=f"{mask.shape[1]}x{mask.shape[0]} px",
                         expected=f"{frame_size[1]}x{frame_size[0]} px")
    binary = (2 * mask.astype(np.int32) > mask.max()).astype(np.uint8)  # also for masks of 0 and 1
    size = (map_size[1], map_size[0])
    small = cv2.resize(binary, size, interpolation=cv2.INTER_NEAREST) > 0
    if binary.any() and not small.any():
        small = cv2.resize(binary.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    return np.asarray(small)


def smoothing(post_filter: list[str]) -> list[str]:
    """The smoothing steps of a post-filter: mean and median before the threshold."""
    return [step for step in post_filter[:post_filter.index("threshold")] if parse_step(step)[0] in ("mean", "median")]


def pixel_figures(maps: list[MapArray], masks: list[NDArray[np.bool_]]) -> tuple[float, float, float]:
    """Pixel AUROC, AUPRO up to a false-positive rate of 0.3, and pixel average precision, over maps and masks ``[h,
    w]``.
    """
    import torch
    from pyaupro import PerRegionOverlap, auc_compute
    from sklearn.metrics import average_precision_score, roc_auc_score

    if len({found.shape for found in maps}) > 1:
        raise InputError("the maps differ in size, because the frames do and the network sees tiles of them",
                         got=", ".join(sorted({f"{found.shape[1]}x{found.shape[0]} px" for found in maps})),
                         expected="frames of one size")
    all_maps, all_masks = np.stack(maps), np.stack(masks)
    overlap = PerRegionOverlap()
    overlap.update(torch.from_numpy(all_maps), torch.from_numpy(all_masks.astype(np.int64)))
    aupro = float(auc_compute(*overlap.compute(), limit=AUPRO_FPR))
    return (float(roc_auc_score(all_masks.ravel(), all_maps.ravel())), aupro,
            float(average_precision_score(all_masks.ravel(), all_maps.ravel())))


def evaluate(bundle: Bundle, data: Path, precision: Precision = "fp32", backend: str | None = None,
             progress: Callable[[int, int], None] = lambda *_: None) -> Evaluation:
    """Inspect all labelled images of ``data``. Pixel figures are on the smoothed map (mean and median), at the map's
    size.

    precision: passed by the gate or not. backend: None: `pick_backend` decides.
    """
    from sklearn.metrics import roc_auc_score

    images = labelled_images(data)
    backend = backend or pick_backend(bundle, precision=precision)
    threshold = Choice(bundle, precision, backend).threshold_if_any
    steps = smoothing(bundle.decision.post_filter)
    scores, defective, seconds, unmarked = [], [], 0.0, 0
    maps: list[MapArray] = []
    masks: list[NDArray[np.bool_]] = []
    with Inspector(bundle, precision=precision, backend=backend) as inspector:
        inspector.warm_up()
        for done, image in enumerate(images, 1):
            frame = read_image(image.path)
            start = time.perf_counter()
            inspection = inspector.inspect(frame, threshold)
            seconds += time.perf_counter() - start
            scores.append(inspection.score)
            defective.append(image.defect != "good")
            mask = np.zeros(inspection.raw.shape, bool)
            if image.mask is not None:
                mask = read_mask(image.mask, (frame.shape[0], frame.shape[1]), inspection.raw.shape)
            if mask.any() or image.defect == "good":
                maps.append(smooth(inspection.raw, steps))
                masks.append(mask)
            else:
                unmarked += 1
            progress(done, len(images))
    bad = np.array(defective)
    values = np.array(scores)
    both = bool(bad.any() and not bad.all())
    has_truth = any(mask.any() for mask in masks)
    pixel = pixel_figures(maps, masks) if has_truth else (None, None, None)
    false_rejects = escapes = None
    if threshold is not None:
        false_rejects, escapes = int((values[~bad] > threshold).sum()), int((values[bad] <= threshold).sum())
    good, wrong = int((~bad).sum()), int(bad.sum())
    return Evaluation(
        image_auroc=float(roc_auc_score(bad, values)) if both else None,
        pixel_auroc=pixel[0], aupro=pixel[1], pixel_ap=pixel[2],
        false_reject_rate=None if false_rejects is None or not good else false_rejects / good,
        escape_rate=None if escapes is None or not wrong else escapes / wrong,
        good=good, defective=wrong, unmarked=unmarked, false_rejects=false_rejects, escapes=escapes,
        threshold=threshold,
        ms_per_image=1000 * seconds / len(images),
    )

"""Quantises a bundle: a precision is offered only if its decisions, compared with float32's, pass the gate."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from calib.threshold import make_threshold, score_parts
from edge.base.errors import BundleError, EngineError, InputError
from edge.bundle.bundle import Bundle, PrecisionCard, hash_files, load_bundle, write_card
from edge.bundle.decision import keep_thresholds, write_threshold
from edge.engines.engine import Precision
from edge.engines.openvino import OpenVino
from edge.engines.openvino_graphs import device_name, runs_bfloat16
from edge.images.maps import MapArray
from edge.inspection.golden import write_golden_maps
from export.gate import Gate, Limits
from export.precisions import Progress, Quantiser, Result

FRAMES = 2000


@dataclass
class Quantisation:
    """All that the report shows."""

    bundle: Bundle
    results: dict[Precision, Result]
    gate: Gate
    limits: dict[str, Limits]
    rate: float
    calibration: str  # the source of INT8's ranges
    calibration_frames: int
    device: str
    seconds: float = 0.0

    @property
    def remark(self) -> str:
        """A warning if even float32 finds less than 90 % of the painted defects; otherwise empty."""
        found = self.results["fp32"].findings
        missed = [share for share, value in (("50 %", found.contrast_50), ("90 %", found.contrast_90))
                  if value is None] if found else []
        return "" if not missed else (f"Even in float32, fewer than {' and '.join(missed)} of the painted defects are "
                                      "found at full contrast: the limits do not cover that share. Is the threshold "
                                      "right?")


def quantize(bundle: Bundle, *, calibration: Path | None = None, good: Path | None = None, limits: dict[str, Limits],
             frames: int = FRAMES, minutes: float = 20, progress: Progress = lambda *_: None) -> Quantisation:
    """Write ``model/fp16.onnx`` and ``model/int8.onnx`` into a bundle, and record which precisions passed the gate.

    calibration: a reviewed set for INT8's ranges; good: the good parts that `calibrate` got; minutes: time limit of the
    search. Raises InputError or BundleError, with the bundle unchanged, for an uncalibrated bundle, other good parts,
    or a calibration set that nobody has reviewed.
    """
    if frames < 100:
        raise InputError("the gate needs more frames", got=frames, expected="100 or more, better 2000")
    with lock_bundle(bundle.folder):
        return _quantize(bundle, calibration, good, limits, frames, minutes, progress)


@contextlib.contextmanager
def lock_bundle(folder: Path) -> Iterator[None]:
    """Hold a bundle's lock, so that only one process adds graphs or plans. Raises BundleError if another holds it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BundleError(f"{folder} is being quantised, or its engines are being built", got="a second such command",
                          expected="one at a time", next="Run it again when the other command has ended.") from None
    finally:
        os.close(lock)


def _quantize(bundle: Bundle, calibration: Path | None, good: Path | None, limits: dict[str, Limits], frames: int,
              minutes: float, progress: Progress) -> Quantisation:
    folder = bundle.folder / ".quantize"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
        folder.mkdir()
    except OSError as error:
        raise BundleError(f"cannot write into {bundle.folder}", got=error.strerror,
                          expected="a writable folder with room") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # ONNX Runtime's quantiser prints its progress
            work = Quantiser(bundle, calibration, good, limits, frames, minutes, folder, progress)
            searched: dict[Precision, Callable[[], Result]] = {"fp16": work.fp16, "int8": work.int8}
            results: dict[Precision, Result] = {
                "fp32": Result("fp32", work.gate.compare(work.gate.reference, Limits()), work.gate.reference)}
            if runs_bfloat16():
                results["bf16"] = work.bf16()
            for precision, make in searched.items():
                try:
                    results[precision] = make()
                except EngineError as error:  # a user's own graph may contain what a runtime does not support
                    results[precision] = Result(precision, None, reason=str(error).splitlines()[0])
            work.time(results)
            passed = [result for result in results.values() if result.passed and result.ms_per_image
                      and result.precision != "fp32"]
            own = {result.precision: work.golden(result) for result in passed}
        made = Quantisation(bundle, results, work.gate, limits, work.rate, work.calibration, len(work.ranged),
                            device_name(), time.monotonic() - work.begin)
        offered = offer(bundle, folder, results, own)
        for precision, card in offered.card.precisions.items():
            if precision != "fp32" and card.passed:
                scores = score_parts(offered, work.paths, precision, OpenVino.name)
                threshold = make_threshold(scores, work.hashes, precision, OpenVino.name, work.rate)
                write_threshold(bundle.folder, threshold, offered.graph_sha256(precision), card.rule_sha256)
        return replace(made, bundle=load_bundle(bundle.folder))
    except OSError as error:
        raise BundleError(f"cannot write into {bundle.folder}", got=error.strerror, expected="room on the disk",
                          next="Run `lineside quantize` again; float32 is unchanged.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def offer(bundle: Bundle, graphs: Path, results: dict[Precision, Result], maps: dict[Precision, MapArray]) -> Bundle:
    """Move ``fp16.onnx`` and ``int8.onnx`` from the folder ``graphs`` into the bundle, and offer what passed.

    maps: golden maps ``[N, h, w]`` of each precision that passed. A stop at any moment leaves a bundle that offers at
    least float32.
    """
    model = bundle.folder / "model"
    rule = bundle.decision.rule_sha256(bundle.folder)
    files = {name: sha256 for name, sha256 in bundle.card.files.items() if not _belongs_to_quantisation(name)}
    write_card(model, bundle.card.model_copy(update={"files": files, "precisions": {}}))
    keep_thresholds(bundle.folder, ["fp32"])
    for path in [*model.glob("*.onnx"), *(model / "golden").iterdir()]:
        if _belongs_to_quantisation(path.relative_to(model).as_posix()):
            path.unlink()
    for precision in ("fp16", "int8"):
        if (graph := graphs / f"{precision}.onnx").exists():
            graph.replace(model / graph.name)
    for precision, own in maps.items():
        write_golden_maps(model, precision, own)
    cards: dict[Precision, PrecisionCard] = {}
    for precision, result in results.items():
        times: dict[str, float] = {} if result.ms_per_image is None else {OpenVino.name: result.ms_per_image}
        passed = precision == "fp32" or (result.passed and bool(times))
        cards[precision] = PrecisionCard(passed=passed, reason=result.reason, tolerance=result.golden,
                                         ms_per_image=times, tolerance_on_device=result.golden_on_device,
                                         device=device_name(), rule_sha256=rule)
    found = hash_files(model)
    write_card(model, bundle.card.model_copy(update={"files": {name: found[name] for name in found},
                                                     "precisions": cards}))
    return load_bundle(bundle.folder)


def _belongs_to_quantisation(name: str) -> bool:
    return name in ("fp16.onnx", "int8.onnx") or name.startswith("golden/maps-")

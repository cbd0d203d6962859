"""Makes and measures each precision of a bundle: a search for nodes that must stay float, the gate, speed, golden
maps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.collect import read_set
from calib.threshold import calibration_images, digest_of, rank
from edge.base.errors import EngineError, InputError
from edge.bundle.bundle import Bundle
from edge.bundle.rule import smooth
from edge.engines.engine import Precision
from edge.engines.openvino import OpenVino
from edge.engines.openvino_graphs import runs_bfloat16
from edge.images.files import read_image
from edge.images.frames import prepare_frame
from edge.images.maps import MapArray
from edge.inspection.golden import read_golden
from export.channels import activations
from export.fp16 import products, write_fp16, write_rounded
from export.gate import Findings, Gate, Limits, Measured, saturating
from export.gate_frames import LADDER, make_frames
from export.int8 import Int8Graphs, Ranges, load_named
from export.maps import OnnxRuntimeMaps, OpenVinoMaps
from export.search import Cost, Kept, NodeLoss, Write, as_arrays, kept_by, last_steps, map_error, rank_nodes
from export.timing import Stopwatch, shares

Progress = Callable[[str, int, int], None]
# of the gate's frames; the search has frames of its own, so that nothing is tuned on the reported figures
SEED = 20_000
GOOD_IN_SEARCH, BAD_IN_SEARCH = 8, 12
FEWER = 3  # nodes are ranked on every third image of the search
EVENNESSES = (0.25, 0.5, 0.75)  # degrees of channel equalisation that are tried, each with each way to find ranges
WORTH_TRYING = 0.01  # a float node that costs more than this share of an inference is tried again in the precision
TIMINGS = 30  # images in each precision, in turn
CALIBRATED_ON = 200  # frames of a calibration set, at most
PAINTED = 400  # gate frames drawn to get defects whose values INT8's ranges must include


@dataclass
class Result:
    """What is known about a precision."""

    precision: Precision
    findings: Findings | None  # None: it was never measured completely
    measured: Measured | None = None  # set together with the findings
    reason: str = ""  # why it did not pass
    kept: list[NodeLoss] = field(default_factory=list)  # nodes that stayed in float32 or bfloat16
    nodes: int = 0  # that could be in this precision
    searched: bool = True  # whether the search finished before its time was up
    way: int = 0  # index of the way by which its graph was made
    ranges: Ranges | None = None
    evenness: float = 0.0  # degree of channel equalisation
    # activation -> largest share clipped on a defective frame
    saturating: dict[str, float] = field(default_factory=dict)
    ms_per_image: float | None = None
    golden: float = 0.0  # tolerance of its golden maps
    golden_on_device: float = 0.0  # the same on this device

    @property
    def passed(self) -> bool:
        """Whether it may be offered."""
        return not self.reason and self.findings is not None and self.findings.passed


class Quantiser:
    """One run of `lineside quantize`: its frames, its gate, and a folder for graphs."""

    def __init__(self, bundle: Bundle, calibration: Path | None, good: Path | None, limits: dict[str, Limits],
                 frames: int, minutes: float, folder: Path, progress: Progress) -> None:
        self.bundle, self.limits, self.folder, self.progress = bundle, limits, folder, progress
        self.begin = time.monotonic()
        self.minutes, self.deadline = minutes, 0.0
        card = bundle.card
        self.size = (card.input.height, card.input.width, card.input.channels)
        self.graph = bundle.graph("fp32")
        threshold = bundle.calibrated_threshold("fp32", OpenVino.name)
        self.rate = threshold.false_reject_rate
        self.paths, self.hashes, _ = calibration_images(bundle, good)
        if digest_of(self.hashes) != threshold.good_parts_sha256:
            raise InputError(
                f"the threshold of {bundle.folder} rests on other good parts",
                got=f"{len(self.paths)} of " + ("the fit's own" if good is None else str(good)),
                expected=f"the {threshold.good_parts} that it was calibrated on",
                next="Give the folder that `lineside calibrate --good` got, or calibrate again.")
        self.calibration, ranged = "the good parts that the fit set aside" if good is None else str(good), self.paths
        if calibration is not None:
            made = read_set(calibration)
            if not made.reviewed:
                doubtful = sum(frame.stands_out for frame in made.frames)
                raise InputError(
                    f"nobody has reviewed {calibration}", got=f"{doubtful} unusual frames",
                    expected="a set without defects", next=f"Look at {calibration / 'index.html'}, then run `lineside "
                    f"collect --out "
                    f"{calibration} --leave-out NUMBERS`, or none")
            self.calibration, ranged = str(calibration), [made.images / frame.file for frame in made.frames]
        step = max(1, -(-len(ranged) // CALIBRATED_ON))
        self.ranged = np.stack([image for path in ranged[::step] for image in self._prepared(path)[0]])
        # frames in tiles give more images than frames
        self.ranged = self.ranged[::max(1, -(-len(self.ranged) // CALIBRATED_ON))]
        good_parts = [self._prepared(path) for path in self.paths]
        self.search_images, self.expected = self._search_set()
        k = rank(len(self.paths), self.rate)

        def gate(seed: int, title: str) -> Gate:
            drawn = make_frames(bundle, self.paths, frames, seed, lambda d, t: progress(f"drawing {title}", d, t))
            with OpenVinoMaps(self.graph, self.size, "fp32") as run:
                return Gate(bundle, drawn, good_parts, k, run, lambda d, t: progress(f"float32: {title}", d, t))

        self.gate, self.trial = gate(SEED, "the gate's frames"), gate(SEED + 3, "the search's frames")

    def _prepared(self, path: Path) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The network's inputs for an image, uint8 ``[N, H, W, C]``, and the image's (height, width)."""
        frame = read_image(path)
        self.bundle.check(frame)
        views = self.bundle.views(frame)
        images = np.empty((len(views), *self.size), np.uint8)
        for view, image in zip(views, images, strict=True):
            prepare_frame(view, image)
        return images, (frame.shape[0], frame.shape[1])

    def _search_set(self) -> tuple[NDArray[np.uint8], list[MapArray]]:
        frames = make_frames(self.bundle, self.paths, 100, SEED + 1)
        good = [frame.image for frame in frames if frame.defect is None][:GOOD_IN_SEARCH]
        bad = [frame.image for frame in frames if frame.defect is not None and frame.contrast > 0.15]
        images = np.stack([*good, *bad[:: max(1, len(bad) // BAD_IN_SEARCH)]])
        return images, self._maps(self.graph, "fp32", images)

    def _maps(self, graph: Path, precision: str, images: NDArray[np.uint8] | None = None) -> list[MapArray]:
        """Smoothed maps of the search's images, or of ``images``, on OpenVINO."""
        steps = self.bundle.decision.post_filter
        chosen = self.search_images if images is None else images
        with OpenVinoMaps(graph, self.size, _measured_as(precision)) as run:
            return [smooth(values, steps) for values in as_arrays(chosen, run)]

    def bf16(self) -> Result:
        """bfloat16: the float32 graph, which OpenVINO runs in bfloat16."""
        return self._gated(Result("bf16", None), self.graph, self.gate, whole=True)

    def fp16(self) -> Result:
        """FP16: searched and measured on a graph that rounds every half tensor."""
        model = load_named(self.graph)
        nodes = products(model)
        return self._searched("fp16", nodes, [(lambda path, kept: write_rounded(model, path, kept),
                                               lambda path, kept: write_fp16(model, path, kept))])

    def int8(self) -> Result:
        """INT8, with the ranges and the channel equalisation that measure best."""
        painted = [frame.image for frame in make_frames(self.bundle, self.paths, PAINTED, SEED + 2)
                   if frame.contrast in LADDER[-2:]]
        graphs = Int8Graphs(self.graph, self.ranged, np.stack(painted),
                            lambda d, t: self.progress("int8: ranges", d, t))
        ways: list[tuple[Ranges, float]] = [(ranges, evenness) for ranges in ("minmax", "percentile")
                                            for evenness in EVENNESSES]
        writes: list[Write] = [
            lambda path, kept, way=way: graphs.write(path, kept, *way) for way in ways]  # type: ignore[misc]
        errors = []
        for write in writes:
            write(self.folder / "ranges.onnx", {})
            errors.append(map_error(self.expected, self._maps(self.folder / "ranges.onnx", "int8")))
        best = sorted(range(len(ways)), key=lambda number: errors[number])
        result = self._searched("int8", graphs.nodes, [(writes[i], writes[i]) for i in best], halves=runs_bfloat16())
        result.ranges, result.evenness = ways[best[result.way]]
        kept = {loss.name for loss in result.kept}
        limits = graphs.limits(result.ranges, kept, result.evenness)
        full = [self.gate.frames[i].image for i in self.gate.full[:24]]
        good = [images[0] for images, _ in self.gate.good[:12]]
        result.saturating = saturating(limits, activations(graphs.model, list(limits)), good, full) if limits else {}
        return result

    def _searched(self, precision: Precision, nodes: list[str], ways: Sequence[tuple[Write, Write]],
                  halves: bool = False) -> Result:
        """Start with all nodes in the precision, and give a higher one to the most harmful nodes until the gate passes
        or time is up.

        Candidates are chosen on the search's own frames; the gate's frames are only for what was chosen. ways: pairs of
        functions that write the graph to measure and the final graph, best first. halves: whether a node may become
        bfloat16 before float32.
        """
        final, few = self.folder / f"{precision}.onnx", self.search_images[::FEWER]

        def maps(path: Path) -> list[MapArray]:
            return self._maps(path, precision, few)

        result = Result(precision, None, nodes=len(nodes))
        self.deadline = time.monotonic() + 60 * self.minutes / 2
        steps: list[NodeLoss] = []
        cost_of: Callable[[str], Cost] | None = None
        write, write_final = ways[0]
        number = 0
        while len(kept := last_steps(steps[:number])) < len(nodes) and (number == 0 or self._left() > 0):
            for way, (write_it, write_last) in enumerate(ways):
                if not self._tried(replace(result, kept=kept, way=way), write_it, self.trial).passed:
                    continue
                chosen = self._fewer_kept(replace(result, kept=kept, way=way), write_it, cost_of if halves else None)
                found = self._tried(chosen, write_it, self.gate)
                if found.passed:
                    write_last(final, kept_by(found.kept))
                    return found
            if not steps:
                cost_of = self._costs(nodes, write, halves) if precision == "int8" else None
                write(self.folder / "timed.onnx", dict.fromkeys(nodes, "fp32"))
                parts = shares(self.folder / "timed.onnx", self.size, nodes, self.search_images[0])
                steps = rank_nodes(parts, cost_of, write, maps, self.expected[::FEWER], self.folder,
                                   time.monotonic() + 0.5 * self._left(),
                                   lambda d, t: self.progress(f"{precision}: error of each node", d, t), halves)
                result.searched = all(step.error is not None for step in steps)
            number += 1
            self.progress(f"{precision}: steps to float", number, len(steps))
        result.searched &= len(kept) >= len(nodes)
        if nodes and len(kept) < len(nodes):  # measure it completely, so that the report can show what it changes
            result = self._tried(replace(result, kept=kept), write, self.gate, whole=True)
            write_final(final, kept_by(kept))
        else:
            write_final(final, {})
            result.kept, result.reason = [], "every node harms the map in it" if nodes else "no node could be in it"
        return result

    def _costs(self, nodes: list[str], write: Write, halves: bool) -> Callable[[str], Cost]:
        """A function that measures what it costs to keep a node out of INT8."""
        timed = self.folder / "timed.onnx"
        write(timed, {})
        watch = Stopwatch(timed, self.size, self.search_images[0])

        def longer(kept: Kept) -> float:
            write(timed, kept)
            return watch.longer(timed)

        @cache
        def cost_of(name: str) -> Cost:
            return Cost(longer({name: "bf16"}) if halves else 0.0, longer({name: "fp32"}))

        return cost_of

    def _fewer_kept(self, result: Result, write: Write, halves: Callable[[str], Cost] | None) -> Result:
        """Try the nodes that were kept in float in the precision again, the most expensive first, while there is time.

        halves: gives a node's cost, if it may be in bfloat16; nodes that must stay out of the precision are then tried
        in bfloat16.
        """
        for loss in sorted(result.kept, key=lambda loss: -loss.cost):
            others = [other for other in result.kept if other is not loss]
            lower = [others]
            if loss.cost < WORTH_TRYING or self._left() <= 0:
                break
            if halves is not None and loss.precision == "fp32" and (cost := halves(loss.name)).half < loss.cost:
                lower.append([*others, replace(loss, precision="bf16", cost=cost.half)])
            for kept in lower:
                fewer = self._tried(replace(result, kept=kept), write, self.trial)
                if fewer.passed:
                    result = fewer
                    break
        return result

    def _tried(self, result: Result, write: Write, gate: Gate, whole: bool = False) -> Result:
        """Write the graph in which the nodes of ``result.kept`` stay in float, and measure it on a gate."""
        graph = self.folder / f"measured-{result.precision}.onnx"
        write(graph, kept_by(result.kept))
        return self._gated(result, graph, gate, whole)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _gated(self, result: Result, graph: Path, gate: Gate, whole: bool = False) -> Result:
        """Measure ``graph`` on a gate, and put the findings into ``result``. Stops early once it cannot pass, unless
        ``whole``.
        """
        limits = self.limits[result.precision]
        most = int(limits.flips * len(gate.frames))
        title = f"{result.precision}: {result.nodes - len(result.kept)} nodes" if result.nodes else result.precision
        result.findings, result.measured, result.reason = None, None, ""
        try:
            with OpenVinoMaps(graph, self.size, _measured_as(result.precision)) as run:
                measured = gate.measure(run, None if whole else most, lambda d, t: self.progress(title, d, t))
                if measured is None:
                    result.reason = f"more than {most} of {len(gate.frames)} decisions flip"
                    return result
        except EngineError as error:
            result.reason = f"it cannot be measured: {str(error).splitlines()[0]}"
            return result
        result.findings, result.measured = gate.compare(measured, limits), measured
        result.reason = "; ".join(result.findings.reasons)
        return result

    def graph_of(self, precision: Precision) -> Path:
        """The graph that the line would run."""
        return self.graph if precision in ("fp32", "bf16") else self.folder / f"{precision}.onnx"

    def time(self, results: dict[Precision, Result]) -> None:
        """Measure the speed of all precisions, in turn, on OpenVINO. One that OpenVINO cannot load does not pass."""
        engines: dict[Precision, OpenVinoMaps] = {}
        for precision, result in results.items():
            try:
                engines[precision] = OpenVinoMaps(self.graph_of(precision), self.size, precision)
            except EngineError as error:
                result.reason = f"OpenVINO cannot load it: {str(error).splitlines()[0]}"
        seconds: dict[Precision, list[float]] = {precision: [] for precision in engines}
        image = self.search_images[0]
        for number in range(TIMINGS + 3):
            for precision, engine in engines.items():
                start = time.perf_counter()
                engine(image)
                if number >= 3:
                    seconds[precision].append(time.perf_counter() - start)
            self.progress("timing", number + 1, TIMINGS + 3)
        for precision, engine in engines.items():
            results[precision].ms_per_image = round(1000 * statistics.median(seconds[precision]), 3)
            engine.__exit__(None, None, None)

    def golden(self, result: Result) -> MapArray:
        """Calculate the golden maps of a precision, ``[N, h, w]``, and set their tolerances: twice the difference seen
        here.

        For this device, that is the difference between one thread and all threads. For other devices: INT8: between
        OpenVINO and ONNX Runtime, which round in different places; bfloat16: from float32, which runs on processors
        without bfloat16; FP16: from the map with all roundings.
        """
        precision, graph = result.precision, self.graph_of(result.precision)
        _, frames, float32 = read_golden(self.bundle)
        images = np.empty((len(frames), *self.size), np.uint8)
        for frame, image in zip(frames, images, strict=True):
            prepare_frame(frame, image)
        with OpenVinoMaps(graph, self.size, precision) as run:
            own = np.stack(as_arrays(images, run))
        with OpenVinoMaps(graph, self.size, precision, threads=1) as run:
            one_thread = np.stack(as_arrays(images, run))
        other = float32
        if precision == "int8":
            with OnnxRuntimeMaps(graph) as run_other:
                other = np.stack(as_arrays(images, run_other))
        elif precision == "fp16":
            with OpenVinoMaps(self.folder / "measured-fp16.onnx", self.size, "fp32") as run_rounded:
                other = np.stack(as_arrays(images, run_rounded))
        span = max(float(np.ptp(own)), 1e-12)
        here, there = (float(np.abs(own - maps).max()) / span for maps in (one_thread, other))
        result.golden_on_device = float(f"{max(1e-3, 2 * here):.3g}")
        result.golden = float(f"{max(4e-3, 2 * there):.3g}")
        return own


def _measured_as(precision: str) -> str:
    """The precision that a graph is run in: FP16 is measured on a float32 graph that contains the roundings."""
    return "fp32" if precision == "fp16" else precision

"""TensorRT plans of a bundle's graphs: built for this machine's GPU, checked by golden parts, with thresholds of their
own.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.threshold import calibration_images, digest_of, make_threshold
from edge.base.errors import BundleError, EngineError, EngineLostError, InputError
from edge.base.files import file_sha256
from edge.bundle.bundle import Bundle, load_bundle, write_card
from edge.bundle.decision import drop_threshold, write_threshold
from edge.engines.engine import Precision
from edge.engines.gpu import import_tensorrt, make_logger, this_device
from edge.engines.openvino import OpenVino
from edge.engines.plans import Device, PlanKey, find_plan, plan_folder, write_plan
from edge.engines.tensorrt import TensorRt, TensorRtEngine
from edge.images.files import read_image
from edge.images.frames import prepare_frame
from edge.inspection.golden import golden_scores, judge_golden, read_golden
from edge.inspection.inspector import Inspector
from export.quantize import lock_bundle

Progress = Callable[[str, int, int], None]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TIMINGS = 50  # inferences of each precision, in turn
WARM_UP = 10
LAYER_RUNS = 20


@dataclass
class Built:
    """The result for one precision."""

    precision: Precision
    plan: Path | None = None
    cached: bool = False  # whether the plan was already in the cache
    seconds: float = 0.0
    reason: str = ""  # why it is not offered
    threshold: float | None = None
    ms_per_image: float | None = None
    without_graphs: str | None = None  # why its inferences are not launched as CUDA graphs
    layers: dict[str, float] | None = None  # ms by layer, if requested


def parse_batch(text: str) -> tuple[int, int, int]:
    """``1:4:16`` as (least, best, most) images at once. Raises InputError."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit()
                                  for part in parts) or not 1 == int(parts[0]) <= int(parts[1]) <= int(parts[2]) <= 256:
        raise InputError("--batch is invalid", got=text,
                         expected="1:BEST:MOST images at once, such as 1:4:16, up to 256")
    return int(parts[0]), int(parts[1]), int(parts[2])


def parse_graph(trt: Any, builder: Any, graph: Path, log: Any) -> tuple[Any, Any]:
    """The strongly typed network of an ONNX graph, and its parser. Raises EngineError with the parser's reasons."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph.read_bytes()):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineError(f"TensorRT does not accept {graph}", got="; ".join(reasons) or log.last,
                          expected="a graph of TensorRT's operators",
                          next="Run `lineside export` and `lineside quantize` again, with this version.")
    return network, parser


def build_plan(trt: Any, graph: Path, batch: tuple[int, int, int], *, workspace_mb: int,
               timing_cache: Path | None = None, progress: Callable[[int, int], None] = lambda *_: None,
               configure: Callable[[Any], None] = lambda _: None) -> bytes:
    """A strongly typed plan of an ONNX graph, for this machine's GPU unless ``configure`` changes the builder's
    settings.

    trt: the module `tensorrt`, or one with the same names. The graph determines the precision of each node; TF32 is
    off, so that float32 stays float32. Raises EngineError with the reason of the parser or the builder.
    """
    log = make_logger(trt)
    builder = trt.Builder(log)
    network, _parser = parse_graph(trt, builder, graph, log)  # the parser owns the weights that the network reads
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _monitor(trt, progress)
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.exists() else b"")
        if cache is None or not config.set_timing_cache(cache, False):  # from another driver or power mode, or damaged
            config.set_timing_cache(config.create_timing_cache(b""), False)
    profile = builder.create_optimization_profile()
    tensor = network.get_input(0)
    profile.set_shape(tensor.name, *((n, *tuple(tensor.shape)[1:]) for n in batch))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError("TensorRT does not accept the batch", got=str(batch), expected="least <= best <= most")
    configure(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT could not build {graph}", got=log.last or "no reason in its log",
                          expected=f"a plan within {workspace_mb} MB of workspace")
    if timing_cache is not None and (cache := config.get_timing_cache()) is not None:
        temporary = timing_cache.with_name(f".{timing_cache.name}.part")
        temporary.write_bytes(bytes(cache.serialize()))
        temporary.replace(timing_cache)
    return bytes(plan)


def _monitor(trt: Any, progress: Callable[[int, int], None]) -> Any:
    """A TensorRT progress monitor that reports the outermost phase."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                progress(min(step + 1, self._phases[phase_name]), self._phases[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            if (steps := self._phases.pop(phase_name, None)) is not None:
                progress(steps, steps)

    return Monitor()


def make_engines(bundle: Bundle, *, precision: str = "auto", batch: tuple[int, int, int] = (1, 4, 16),
                 workspace_mb: int = 1024, good: Path | None = None, layers: bool = False,
                 progress: Progress = lambda *_: None) -> tuple[Bundle, Device, list[Built]]:
    """Build all precisions that the bundle offers (``auto``), or one, for this machine's GPU. Returns bundle, GPU and
    results.

    A plan is offered once it reproduces the golden parts and has a threshold from the good parts of `calibrate`.
    Raises InputError, BundleError or EngineError; what was offered by then stays offered.
    """
    if precision == "auto":
        wanted = [name for name in bundle.offered() if name in PRECISIONS]
    elif (chosen := bundle.choose(precision, TensorRt.name)) in PRECISIONS:
        wanted = [chosen]
    else:
        raise InputError("TensorRT does not run this precision", got=precision,
                         expected=", ".join([*PRECISIONS, "auto"]))
    base = bundle.calibrated_threshold("fp32", OpenVino.name)
    paths, hashes, _ = calibration_images(bundle, good)
    if digest_of(hashes) != base.good_parts_sha256:
        raise InputError(f"the threshold of {bundle.folder} rests on other good parts", got=f"{len(paths)}",
                         expected=f"{base.good_parts}",
                         next="Give the folder that `lineside calibrate --good` got, or calibrate again.")
    device, folder = this_device(), plan_folder()
    with lock_bundle(bundle.folder):
        return _make(bundle, wanted, device, folder, batch, workspace_mb, paths, hashes, base.false_reject_rate, layers,
                     progress)


def _make(bundle: Bundle, wanted: Sequence[Precision], device: Device, folder: Path, batch: tuple[int, int, int],
          workspace_mb: int, paths: Sequence[Path], hashes: Sequence[str], rate: float, layers: bool,
          progress: Progress) -> tuple[Bundle, Device, list[Built]]:
    timing_cache = folder / f"timing-{device.gpu.replace(' ', '-').replace('/', '-')}-{device.tensorrt}.cache"
    made = [_build(bundle, name, device, folder, batch, workspace_mb, timing_cache, progress) for name in wanted]
    rule = bundle.decision.rule_sha256(bundle.folder)
    for number, built in enumerate(made):
        if not built.reason:
            progress("golden parts and thresholds", number, len(made))
            _look_at(bundle, built, paths, hashes, rate, rule)
    offered = [built for built in made if not built.reason]
    _time(bundle, offered, layers, progress)
    cards = dict(bundle.card.precisions)
    for built in offered:
        if built.precision in cards and built.ms_per_image is not None:
            times = {**cards[built.precision].ms_per_image, TensorRt.name: built.ms_per_image}
            cards[built.precision] = cards[built.precision].model_copy(update={"ms_per_image": times})
    write_card(bundle.folder / "model", bundle.card.model_copy(update={"precisions": cards}))
    return load_bundle(bundle.folder), device, made


def _build(bundle: Bundle, precision: Precision, device: Device, folder: Path, batch: tuple[int, int, int],
           workspace_mb: int, timing_cache: Path, progress: Progress) -> Built:
    built = Built(precision)
    graph = bundle.graph(precision)
    key = PlanKey(file_sha256(graph), device, batch)
    start = time.monotonic()
    try:
        with contextlib.suppress(EngineError):  # there is none, or a stale one: it is built below
            found, _ = find_plan(folder, key.graph_sha256, device, batch[2])
            built.cached = found == key
        built.plan = folder / key.file
        if not built.cached:
            plan = build_plan(import_tensorrt(), graph, batch, workspace_mb=workspace_mb, timing_cache=timing_cache,
                              progress=lambda d, t: progress(f"building {precision}", d, t))
            write_plan(folder, key, plan)
    except EngineError as error:
        built.plan, built.reason = None, str(error)
    except OSError as error:
        raise BundleError(f"cannot write into {folder}", got=error.strerror, expected="room on the disk") from error
    built.seconds = round(time.monotonic() - start, 1)
    return built


def _look_at(bundle: Bundle, built: Built, paths: Sequence[Path], hashes: Sequence[str], rate: float,
             rule: str) -> None:
    """Check the golden parts and set a threshold; delete a plan that does not reproduce them."""
    try:
        with Inspector(bundle, precision=built.precision, backend=TensorRt.name) as inspector:
            scores = golden_scores(inspector)
            parts = sorted(inspector.inspect(read_image(path), None).score for path in paths)
        threshold = make_threshold(parts, hashes, built.precision, TensorRt.name, rate)
        judge_golden(bundle, scores, threshold.value)
    except EngineLostError:
        raise
    except (BundleError, EngineError) as error:
        built.reason = str(error)
        # An older plan that fails only now, say for lack of memory beside a running line, stays.
        if built.plan is not None and (isinstance(error, BundleError) or not built.cached):
            built.plan.unlink(missing_ok=True)
            drop_threshold(bundle.folder, built.precision, TensorRt.name)
        return
    built.threshold = write_threshold(bundle.folder, threshold, bundle.graph_sha256(built.precision), rule).value


def _time(bundle: Bundle, made: Sequence[Built], layers: bool, progress: Progress) -> None:
    """Measure the speed of all precisions, in turn, one image at a time."""
    device, folder = this_device(), plan_folder()
    size = (bundle.card.input.height, bundle.card.input.width, bundle.card.input.channels)
    image = np.empty(size, np.uint8)
    prepare_frame(read_golden(bundle)[1][0], image)
    engines: list[TensorRtEngine] = []
    try:
        for built in made:
            _, plan = find_plan(folder, bundle.graph_sha256(built.precision), device, 1)
            engines.append(TensorRtEngine(plan, size, slots=1, batch=1))
        seconds: list[list[float]] = [[] for _ in engines]
        for number in range(WARM_UP + TIMINGS):
            for engine, times in zip(engines, seconds, strict=True):
                slot = engine.lease()
                start = time.perf_counter()
                np.copyto(slot.input[0], image)
                slot.start(1)
                slot.wait(10)
                if number >= WARM_UP:
                    times.append(time.perf_counter() - start)
                slot.release()
            progress("timing", number + 1, WARM_UP + TIMINGS)
        for built, engine, times in zip(made, engines, seconds, strict=True):
            built.ms_per_image, built.without_graphs = round(1000 * statistics.median(times), 3), engine.without_graphs
            if layers:
                built.layers = engine.layer_times(LAYER_RUNS)
    finally:
        for engine in engines:
            engine.close()

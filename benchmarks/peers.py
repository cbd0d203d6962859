#!/usr/bin/env python3
"""Compares the line with what people would use instead: in turn, in one run, on the same images and the same network.

Each peer inspects one frame after the other in a process of its own: PyTorch as in the papers' code, torch.compile,
ONNX Runtime in a plain loop, OpenVINO's Model API with its wrapper for anomaly detection, and anomalib's OpenVINO
inferencer. The last two leave the precision to OpenVINO and run in a virtual environment of their own, which the first
run creates. The line is a real `lineside run` with frames in memory and with journal, ledger and PLC link. It runs in
the precision that the bundle offers as fastest, and in the one that OpenVINO gives the peers: bfloat16 if the bundle
offers it, otherwise float32 for both. All take turns; a ratio is the median over the rounds.

    benchmarks/peers.py --bundles DIR --out peers.png
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper
from peer_worker import PEERS
from plc_load import enough, golden_frames, running_line
from rich.progress import Progress
from rich.table import Table
from script import INK, PALE, bundles_in, chosen, options, picture, run

from edge.base.errors import InputError
from edge.bundle.bundle import Bundle, load_bundle
from edge.engines.backends import get_backend
from edge.images.frames import prepare_frame

HERE = Path(__file__).resolve().parent
OWN = HERE.parent / ".venv-peers"
PACKAGES = ["torch==2.13.0", "openvino", "opencv-python-headless", "pillow", "omegaconf", "scikit-image",
            "lightning-utilities", "jsonargparse[signatures]<4.47", "lightning>=2.6", "matplotlib", "pandas",
            "platformdirs", "scikit-learn"]
WITHOUT_DEPENDENCIES = ["anomalib==2.7.0", "openvino-model-api==0.4.7", "torchvision==0.29.1", "timm", "kornia",
                        "kornia-rs"]
IN_TORCH = ("eager PyTorch", "torch.compile")
IN_OWN = ("Model API", "anomalib", "anomalib f32")
START = 600.0  # s that a peer may take to load; torch.compile is the slowest


def make_environment() -> str:
    """Create the peers' own virtual environment, if it does not exist. Returns the reason if that fails, otherwise
    "".
    """
    if (OWN / "ready").exists():
        return ""
    print("peers: creating .venv-peers, which takes some minutes ...", file=sys.stderr)
    same = f"openvino=={__import__('openvino').__version__.partition('-')[0]}"
    wanted = [same if package == "openvino" else package for package in PACKAGES]
    pip = [str(OWN / "bin" / "python"), "-m", "pip", "install", "-q"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(OWN)], [*pip, *wanted],
                    [*pip, "--no-deps", *WITHOUT_DEPENDENCIES]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(command[:4])} ...: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    (OWN / "ready").touch()
    return ""


def peer_graph(bundle: Bundle, threshold: float, out: Path) -> None:
    """The bundle's float32 graph as anomalib exports its own: a float32 colour image in 0..1 in, map, score, label and
    mask out.
    """
    model = onnx.load(bundle.graph("fp32"))
    graph = model.graph
    entry, exit_ = graph.input[0].name, graph.output[0].name
    height, width, channels = bundle.card.input.height, bundle.card.input.width, bundle.card.input.channels
    nodes = [helper.make_node("Mul", ["input", "to_grey_levels"], ["peer/levels"])]
    constants = [numpy_helper.from_array(np.array(255, np.float32), "to_grey_levels"),
                 numpy_helper.from_array(np.array([1], np.int64), "peer/shape"),
                 numpy_helper.from_array(np.array(threshold, np.float32), "peer/threshold")]
    planes = "peer/levels"
    if channels == 1:  # a grey camera's image has three equal channels here
        for name, values in (("starts", [0]), ("ends", [1]), ("axes", [1])):
            constants.append(numpy_helper.from_array(np.array(values, np.int64), f"peer/{name}"))
        nodes.append(helper.make_node("Slice", [planes, "peer/starts", "peer/ends", "peer/axes"], ["peer/one"]))
        planes = "peer/one"
    nodes.append(helper.make_node("Transpose", [planes], [entry], perm=[0, 2, 3, 1]))
    results = [helper.make_node("Identity", [exit_], ["anomaly_map"]),
               helper.make_node("GlobalMaxPool", [exit_], ["peer/highest"]),
               helper.make_node("Reshape", ["peer/highest", "peer/shape"], ["pred_score"]),
               helper.make_node("Greater", ["pred_score", "peer/threshold"], ["pred_label"]),
               helper.make_node("Greater", [exit_, "peer/threshold"], ["pred_mask"])]
    takers = {node.op_type for node in graph.node if entry in node.input}
    if not takers <= {"Cast", "Shape"}:  # which take float32 as well as uint8
        raise InputError(f"the graph of {bundle.folder} begins with {', '.join(takers)}",
                         expected="a Cast of its image")
    everything = [*nodes, *graph.node, *results]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(everything)
    graph.initializer.extend(constants)
    graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, height, width]))
    map_size = [1, 1, bundle.card.map.height, bundle.card.map.width]
    for name, kind, shape in (("anomaly_map", TensorProto.FLOAT, map_size), ("pred_score", TensorProto.FLOAT, [1]),
                              ("pred_label", TensorProto.BOOL, [1]), ("pred_mask", TensorProto.BOOL, map_size)):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(model)
    onnx.save(model, out.with_suffix(".onnx"))
    # as both peers export models
    ov.save_model(ov.convert_model(out.with_suffix(".onnx")), out, compress_to_fp16=False)


class Peer:
    """A peer's process that is ready, or the reason why it is not."""

    def __init__(self, name: str, job: dict[str, Any], folder: Path) -> None:
        self.name, self.reason = name, ""
        path = folder / f"{name.replace(' ', '-')}.json"
        path.write_text(json.dumps({**job, "peer": name}))
        python = str(OWN / "bin" / "python") if name in IN_OWN else sys.executable
        self._errors = (folder / f"{path.stem}.txt").open("w+")
        self._process = subprocess.Popen([python, str(HERE / "peer_worker.py"), str(path)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=folder,
                                         env={**os.environ, "PYTHONPATH": f"{HERE.parent}"})
        self.scores = self._answer().get("scores", [])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        self._errors.seek(0)
        self.reason = (self._errors.read().strip().splitlines() or ["it ended without a message"])[-1]
        return {}

    def seconds(self, frames: int) -> float:
        """The time for so many frames in s; infinity if the process has died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{frames}\n")
            self._process.stdin.flush()
        except OSError:
            self.reason = self.reason or "it died"
        return float(self._answer().get("seconds", float("inf")))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def measure(folder: Path, reference: Path | None, arguments: argparse.Namespace, progress: Progress,
            missing: str) -> dict[str, Any]:
    """The figures of one bundle. The peers run the network of ``reference``, if that is given."""
    choice = chosen(folder, arguments)
    bundle = choice.bundle
    theirs = load_bundle(reference) if reference is not None else bundle
    halves = "bf16" in bundle.offered() and bundle.threshold("bf16", choice.backend) is not None
    equal = "bf16" if halves else "fp32"
    ours = list(dict.fromkeys([choice.precision, equal]))
    frames = golden_frames(bundle)
    size = (theirs.card.input.height, theirs.card.input.width, theirs.card.input.channels)
    prepared = np.empty((len(frames), *size), np.uint8)
    for frame, out in zip(frames, prepared, strict=True):
        prepare_frame(frame, out)
    names = [name for name in PEERS if name not in arguments.without and (equal == "fp32" or name != "anomalib f32")]
    task = progress.add_task(folder.name, total=len(names) + arguments.rounds)
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lineside-peers-")))
        np.save(temporary / "frames.npy", prepared)
        peer_graph(theirs, theirs.calibrated_threshold("fp32", choice.backend).value, temporary / "peer.xml")
        weights = (reference or folder).resolve().with_suffix(".run") / "weights.pt"
        job = {"frames": str(temporary / "frames.npy"), "graph": str(theirs.graph("fp32").resolve()),
               "peer_graph": str(temporary / "peer.xml"), "detector": theirs.card.detector,
               "arguments": theirs.card.fit.get("arguments", {}), "weights": str(weights) if weights.exists() else "",
               "threads": len(os.sched_getaffinity(0))}
        peers: list[Peer] = []
        for name in names:
            if name in IN_OWN and missing:
                absent[name] = missing
            elif name in IN_TORCH and theirs.card.detector == "own":
                absent[name] = "the bundle of a user's own network has no torch module"
            else:
                peer = Peer(name, job, temporary)
                stack.callback(peer.close)
                if peer.scores:
                    peers.append(peer)
                else:
                    absent[name] = peer.reason
            progress.advance(task)
        counts = {peer.name: max(5, int(arguments.seconds * 5 / peer.seconds(5))) for peer in peers}
        rates: dict[str, list[float]] = {name: [] for name in [*counts, *(f"line {name}" for name in ours)]}
        for number in range(arguments.rounds):
            turns: list[Any] = [*peers, *ours]
            for turn in turns if number % 2 else reversed(turns):
                if isinstance(turn, Peer):
                    rates[turn.name].append(counts[turn.name] / turn.seconds(counts[turn.name]))
                    continue
                with running_line(folder, frames=frames, precision=turn, backend=choice.backend) as line:
                    warm = line.play(30, outstanding=6)
                    load = line.play(max(60, int(arguments.seconds * warm.rate())), outstanding=enough(warm.rate()))
                    if not load.inspected:
                        raise SystemExit(f"peers: not all parts of {folder} were inspected")
                    rates[f"line {turn}"].append(load.rate(0.1))
            progress.advance(task)
    fastest, same = f"line {choice.precision}", f"line {equal}"
    equal_peer = "anomalib" if equal == "bf16" else "anomalib f32"
    # it normalises its scores
    scores = {peer.name: np.array(peer.scores) for peer in peers if peer.name != "Model API"}
    first = next(iter(scores.values()), np.ones(1))
    apart = {name: float(f"{np.abs(found / first - 1).max():.2g}") for name, found in scores.items()}

    def ratio(line: str, peer: str) -> float | None:
        if peer not in counts:
            return None
        return round(statistics.median(a / b for a, b in zip(rates[line], rates[peer], strict=True)), 3)

    return {"bundle": folder.name, "detector": bundle.card.detector, "precision": choice.precision,
            "equal_precision": equal, "network": (reference or folder).name,
            "weights": "of the run" if weights.exists() else "as initialised",
            "fps": {name: round(statistics.median(values), 2) for name, values in rates.items()}, "absent": absent,
            "scores_apart": apart,  # relative difference of each peer from the first: they run the same network
            "ratios": {name: ratio(fastest, name) for name in counts}, "equal": ratio(same, equal_peer)}


def geometric(values: list[float | None]) -> float | None:
    """The geometric mean of the values that are not None; None if there are none."""
    there = [value for value in values if value is not None]
    return round(statistics.geometric_mean(there), 3) if there else None


def draw(found: dict[str, Any], out: Path) -> None:
    """Bars: how many times as fast as each peer the line is."""
    names = list(found["geometric_means"])

    def paint(axes: Any) -> None:
        for number, name in enumerate(names):
            dots = [row["ratios"].get(name) for row in found["bundles"]]
            axes.barh(number, found["geometric_means"][name], color=INK, height=0.5)
            there = [dot for dot in dots if dot is not None]
            axes.scatter(there, [number] * len(there), color=PALE, edgecolor="#444", zorder=3)
        axes.set_yticks(range(len(names)), names)
        axes.axvline(1, color="#888", linewidth=1)
        axes.set_xlabel("times as fast as the peer: geometric mean (bar), each network (dots)")

    picture(out, 8, 1.2 + 0.5 * len(names), paint)


def table(found: dict[str, Any]) -> Table:
    """A row for each bundle, frames a second; the last row has the geometric means of the ratios."""
    names = list(dict.fromkeys(name for row in found["bundles"] for name in row["ratios"]))
    shown = Table("bundle", "line, frames/s", *names, "equal precision",
                  title=f"{found['device']}; peers in frames/s (line / peer)")
    for row in found["bundles"]:
        cells = [f"{row['fps'][name]:.1f} ({row['ratios'][name]:.2f})" if name in row["ratios"] else "-"
                 for name in names]
        shown.add_row(row["bundle"], f"{row['fps']['line ' + row['precision']]:.1f} {row['precision']}", *cells,
                      "-" if row["equal"] is None else f"{row['equal']:.2f} {row['equal_precision']}")
    means = found["geometric_means"]
    shown.add_row("geometric mean", "", *(f"{means[name]:.2f}" for name in names), str(found["equal"]))
    for row in found["bundles"]:
        for name, reason in row["absent"].items():
            shown.caption = f"{shown.caption or ''}{row['bundle']}: no {name}: {reason}\n"
    return shown


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--reference", type=Path,
                        help="bundles of the same detectors whose networks the peers run, such as those of "
                        "--preset paper; the same ones unless given")
    parser.add_argument("--without", action="append", default=[], choices=list(PEERS),
                        help="a peer to leave out; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    arguments = parser.parse_args()

    def work(progress: Progress) -> dict[str, Any]:
        folders = bundles_in(arguments.bundles)
        missing = make_environment() if not set(IN_OWN) <= set(arguments.without) else "left out"
        references = {load_bundle(path).card.detector: path
                      for path in bundles_in(arguments.reference)} if arguments.reference else {}
        found = []
        for folder in folders:
            detector = load_bundle(folder).card.detector
            if arguments.reference and detector not in references:
                raise InputError(f"{arguments.reference} has no bundle of {detector}",
                                 next="Leave it out of --bundles.")
            found.append(measure(folder, references.get(detector), arguments, progress, missing))
        names = dict.fromkeys(name for row in found for name in row["ratios"])
        return {"device": get_backend("openvino").device_name(),
                "geometric_means": {name: geometric([row["ratios"].get(name) for row in found]) for name in names},
                "equal": geometric([row["equal"] for row in found]), "bundles": found}

    return run("peers", arguments, work, table, draw)


if __name__ == "__main__":
    sys.exit(main())

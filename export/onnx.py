"""Turns a run into a bundle: its float graph must give torch's maps on OpenVINO and ONNX Runtime before it is
written.
"""

from __future__ import annotations

import copy
import itertools
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detectors.images import GoodImage, cut
from detectors.natural import NaturalImages
from detectors.run import RunRecord, claim_folder, read_run
from edge.base.errors import BundleError, InputError
from edge.bundle.bundle import Bundle, write_bundle
from edge.bundle.rule import Rule
from edge.images.files import good_folder, read_image
from edge.images.frames import FrameSizes, frame_hash, prepare_frame
from edge.inspection.golden import Kind, write_golden
from export.maps import OpenVinoMaps

OPSET = 18
TOLERANCE = 1e-3  # of the map's range
PARITY_IMAGES = 16
FOLDED = 2**26  # elements of a folded constant, at most


class Deployed(nn.Module):
    """The graph as it is deployed: uint8 ``[N, H, W, C]`` in, cast and scaled inside, raw map float32 ``[N, 1, H, W]``
    out.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        # the cast first: TensorRT cannot transpose uint8
        result: Tensor = self.network(image.to(torch.float32).permute(0, 3, 1, 2) / 255.0)
        return result


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode, with batch norms that follow a convolution folded into its weights."""
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, nn.Sequential):
            for i, (conv, norm) in enumerate(itertools.pairwise(list(module))):
                if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(norm, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm,
                                                                 isinstance(conv, nn.ConvTranspose2d)), nn.Identity()
    return folded


def without_plain_transposes(network: nn.Module) -> nn.Module:
    """In every ``Sequential``, replace transposed convolutions that keep the size by flipped convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for i, layer in enumerate(module):
                if isinstance(layer, nn.ConvTranspose2d) and _keeps_size(layer):
                    conv = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size,  # type: ignore[arg-type]
                                     padding=layer.padding, bias=layer.bias is not None)  # type: ignore[arg-type]
                    conv.weight = nn.Parameter(layer.weight.flip(2, 3).transpose(0, 1).contiguous())
                    conv.bias = layer.bias
                    module[i] = conv
    return network


def _keeps_size(layer: nn.ConvTranspose2d) -> bool:
    """Whether a transposed convolution is the same as a convolution with flipped weights."""
    sides = zip(layer.padding, layer.kernel_size, strict=True)
    return layer.stride == (1, 1) and layer.groups == 1 and layer.dilation == (1, 1) and all(
        2 * padding == kernel - 1 for padding, kernel in sides)  # type: ignore[operator]


def write_graph(network: nn.Module, size: tuple[int, int, int], path: Path, output: str = "map") -> None:
    """Write ``network`` as ONNX with a dynamic batch. size: (height, width, channels) of its input; output: the name of
    its output.
    """
    example = torch.zeros((2, *size), dtype=torch.uint8)
    deployed = without_plain_transposes(fold_batch_norms(network))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it says which constants it leaves as they are
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            Deployed(deployed), (example,), path, input_names=["image"], output_names=[output], opset_version=OPSET,
            dynamo=True, external_data=False, dynamic_shapes=({0: torch.export.Dim("N", min=1, max=256)},),
            verbose=False,
        )
    model = onnx.load(path)
    onnxscript.optimizer.fold_constants(model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    onnxscript.optimizer.remove_unused_nodes(model)
    onnx.save(model, path)
    strip_origin(path)


def strip_origin(path: Path) -> None:
    """Remove the exporter's notes from a graph: source paths and stack traces would make its hash depend on the
    checkout.
    """
    model = onnx.load(path)
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node, graph, model]:
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    onnx.save(model, path)


def torch_maps(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Torch's maps of uint8 images ``[N, H, W, C]`` in float32: ``[N, 1, H, W]``."""
    deployed = Deployed(network).eval()
    with torch.inference_mode():
        return np.concatenate([deployed(torch.from_numpy(image[None])).numpy() for image in images])


def openvino_maps(graph: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """OpenVINO's maps of uint8 images ``[N, H, W, C]`` in float32: ``[N, 1, H, W]``."""
    with OpenVinoMaps(graph, (images.shape[1], images.shape[2], images.shape[3]), "fp32") as run:
        return np.stack([run(image) for image in images])[:, None]


def onnxruntime_maps(graph: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """ONNX Runtime's maps of uint8 images ``[N, H, W, C]``, all in one batch: ``[N, 1, H, W]``."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (maps,) = session.run(None, {"image": images})
    return np.asarray(maps, np.float32)


def check_parity(expected: NDArray[np.float32], got: NDArray[np.float32], runtime: str) -> float:
    """The largest difference between two sets of maps, as a share of the expected range. Raises BundleError above
    1e-3.
    """
    if expected.shape != got.shape:
        raise BundleError(f"the exported graph on {runtime} gives maps of another shape", got=got.shape,
                          expected=expected.shape, next="The bundle was not written.")
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        raise BundleError("the network's map is not finite", got="NaN or infinity", expected="finite numbers",
                          next="Run `lineside fit` again with another --seed, or mend your network.")
    difference = float(np.abs(got - expected).max()) / max(float(np.ptp(expected)), 1e-12)
    if difference > TOLERANCE:
        raise BundleError(f"the exported graph on {runtime} differs from the network",
                          got=f"{difference:.2e} of the map's range", expected=f"at most {TOLERANCE:g}",
                          next="The bundle was not written. Report this with the run or the network.")
    return difference


def parity_images(record: RunRecord, network: nn.Module) -> NDArray[np.uint8]:
    """Up to 16 held-out images, each without and with artificial defects, so that the whole range of the map occurs."""
    folder = good_folder(Path(record.data))
    channels: int = network.channels  # type: ignore[assignment]
    images: list[NDArray[np.uint8]] = []
    rng = np.random.default_rng(record.seed)
    natural = NaturalImages()
    for image in record.held_out[:PARITY_IMAGES]:
        frame = read_image(folder / image.name)
        if frame_hash(frame) != image.sha256:
            raise InputError(f"{folder / image.name} has changed since the fit", next="Run `lineside fit` again.")
        prepared = np.empty((record.height, record.width, channels), np.uint8)
        views = cut(frame, record.tile)
        prepare_frame(views[int(rng.integers(len(views)))] if record.tile else frame, prepared)
        defective, _ = network.make_defects(prepared.astype(np.float32) / 255, rng, natural)  # type: ignore[operator]
        images += [prepared, np.rint(defective * 255).astype(np.uint8)]
    return np.stack(images)


def choose_golden(scores: Sequence[float]) -> dict[int, Kind]:
    """Choose up to eight golden parts by score, among images that are good and defective in turn; index -> what it
    shows.

    The good images with the lowest, median and highest score; the defective ones with the highest and median score; and
    the three defective ones closest to the highest good score, where a small difference can flip a verdict.
    """
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    good, defective = [i for i in order if i % 2 == 0], [i for i in order if i % 2]
    chosen: dict[int, Kind] = dict.fromkeys((good[0], good[len(good) // 2], good[-1]), "good")
    chosen |= dict.fromkeys((defective[-1], defective[len(defective) // 2]), "artificial defect")
    near = sorted((i for i in defective if i not in chosen), key=lambda i: abs(scores[i] - scores[good[-1]]))
    return chosen | dict.fromkeys(near[:3], "faint artificial defect")


@dataclass(frozen=True)
class Fitted:
    """What a bundle records about its network apart from the graph."""

    detector: str
    size: tuple[int, int, int]  # height, width, channels of the input
    sizes: FrameSizes
    fit: Mapping[str, Any]
    data: str  # the folder of the good images
    fitted: Sequence[GoodImage]
    held_out: Sequence[GoodImage]
    post_filter: tuple[str, ...]
    tile: tuple[int, int] | None = None  # width, height of the tiles fitted on, px of the frame; None: whole frames


def complete(temporary: Path, out: Path, graph: Path, images: NDArray[np.uint8], expected: NDArray[np.float32],
             fitted: Fitted, name: str | None = None) -> tuple[Bundle, float]:
    """Check the graph in ``temporary`` against the network's own maps of ``images``, good and defective in turn, and
    make it a bundle.

    Returns the bundle ``out`` and the largest difference, as a share of the map's range. Raises BundleError if a
    runtime gives other maps.
    """
    difference = max(check_parity(expected, openvino_maps(graph, images), "OpenVINO"),
                     check_parity(expected, onnxruntime_maps(graph, images), "ONNX Runtime"))
    map_size = (int(expected.shape[2]), int(expected.shape[3]))
    rule = Rule(fitted.post_filter, map_size=map_size, frame_size=map_size)
    golden = choose_golden([rule.score(rule.grey(values[0])) for values in expected])
    write_golden(graph.parent, [images[i] for i in golden], expected[list(golden)], list(golden.values()))
    bundle = write_bundle(
        temporary, out, name=name or out.resolve().name, detector=fitted.detector, input_size=fitted.size,
        map_size=map_size,
        sizes=fitted.sizes, fit={**fitted.fit, "parity": difference}, post_filter=fitted.post_filter, tile=fitted.tile,
        images={"data": fitted.data, "fitted": _listing(fitted.fitted), "held_out": _listing(fitted.held_out)},
    )
    return bundle, difference


def export_run(run: Path, out: Path, name: str | None = None) -> tuple[Bundle, float]:
    """Write the bundle ``out`` from a run. Returns it with the largest difference to torch, as a share of the map's
    range.

    Raises InputError for a damaged run or missing images, BundleError if a runtime and torch disagree.
    """
    record, network = read_run(run)
    size = (record.height, record.width, network.channels)
    images = parity_images(record, network)
    temporary = claim_folder(out, "bundle")
    try:
        graph = temporary / "model" / "fp32.onnx"
        graph.parent.mkdir()
        write_graph(network, size, graph)
        fit = {
            "arguments": record.arguments, "fingerprint": record.fingerprint, "seed": record.seed,
            "steps": record.steps, "minutes": record.minutes, "interrupted": record.interrupted,
            "precision": record.precision, "torch": record.torch, "backbone": record.backbone or "none",
            "natural_images": record.natural_images,
            "images_fitted": len(record.fitted), "images_held_out": len(record.held_out),
        }
        tile = None if record.tile is None else (record.tile, record.tile)
        fitted = Fitted(record.detector, size, record.sizes, fit, str(good_folder(Path(record.data))), record.fitted,
                        record.held_out, network.post_filter, tile)
        return complete(temporary, out, graph, images, torch_maps(network, images), fitted, name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _listing(images: Sequence[object]) -> list[dict[str, str]]:
    return [asdict(image) for image in images]  # type: ignore[call-overload]

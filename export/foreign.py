"""Networks trained elsewhere: a torch factory or an ONNX graph whose output is a map becomes a bundle like any
other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from torch import Tensor, nn

from detectors.artificial_defects import blended_defects
from detectors.images import GoodImage, cut
from detectors.natural import NaturalImages
from detectors.run import claim_folder
from edge.base.errors import InputError
from edge.bundle.bundle import Bundle
from edge.bundle.rule import check_post_filter
from edge.images.files import good_folder, list_images, read_image
from edge.images.frames import FrameSizes, frame_hash, is_grey, prepare_frame
from export.onnx import PARITY_IMAGES, Deployed, Fitted, complete, torch_maps, write_graph

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Normalisation:
    """What the network was trained on: (values in 0..1 - mean) / std, for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def parse(mean: str, std: str, channels: int) -> Normalisation:
        """From numbers separated by commas, one for all channels or one for each. Raises InputError."""
        values = []
        for name, text in (("mean", mean), ("std", std)):
            try:
                numbers = tuple(float(part) for part in text.split(","))
            except ValueError:
                numbers = ()
            positive = name == "std"
            if len(numbers) not in (1, channels) or not np.isfinite(numbers).all() or (positive and min(numbers) <= 0):
                raise InputError(f"--{name} does not fit the network", got=text,
                                 expected=f"1 or {channels} numbers, separated by commas" + ", above 0" * positive)
            values.append(numbers * (channels // len(numbers)))
        return Normalisation(*values)


class Normalised(nn.Module):
    """A network preceded by its normalisation: float32 ``[N, C, H, W]`` in 0..1 -> its map."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(normalisation.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(normalisation.std)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.network((image - self.mean) / self.std)
        return result.float()


def good_parts(data: Path, tile: int | None, progress: Progress) -> tuple[list[GoodImage], FrameSizes]:
    """All different good images of a folder, by name and hash, and the sizes of the frames or tiles that the network
    sees.

    Raises InputError for fewer than 4.
    """
    folder = good_folder(data)
    paths = list_images(folder)
    images, sizes, grey, seen = [], [], [], set()
    for done, path in enumerate(paths, 1):
        frame = read_image(path)
        sha256 = frame_hash(frame)
        if sha256 not in seen:
            seen.add(sha256)
            images.append(GoodImage(path.relative_to(folder).as_posix(), sha256))
            view = cut(frame, tile)[0]
            sizes.append((view.shape[0], view.shape[1]))
            grey.append(is_grey(frame))
        progress(done, len(paths))
    if len(images) < 4:
        raise InputError(f"too few good images in {folder}", got=f"{len(images)} different ones",
                         expected="at least 4, better 50")
    return images, FrameSizes.of(sizes, grey)


def proof_images(data: Path, images: list[GoodImage], size: tuple[int, int, int],
                 tile: int | None) -> NDArray[np.uint8]:
    """Up to 16 good images, each followed by the same with artificial defects: uint8 ``[N, H, W, C]``."""
    rng, natural, result = np.random.default_rng(0), NaturalImages(), []
    for index in np.linspace(0, len(images) - 1, min(PARITY_IMAGES, len(images))).astype(int):
        prepared = np.empty(size, np.uint8)
        views = cut(read_image(good_folder(data) / images[index].name), tile)
        prepare_frame(views[int(rng.integers(len(views)))] if tile else views[0], prepared)
        defective, _ = blended_defects(prepared.astype(np.float32) / np.float32(255), rng, natural, natural_share=0.3)
        result += [prepared, np.rint(defective * 255).astype(np.uint8)]
    return np.stack(result)


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def load_factory(given: str) -> nn.Module:
    """The network that ``file.py:factory`` returns. Raises InputError if that fails."""
    file, _, name = given.rpartition(":")
    path = Path(file)
    if not name.isidentifier() or not path.is_file():
        raise InputError("--torch does not name a factory", got=given,
                         expected="file.py:factory, an existing file and a function in it")
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # as any import does; dataclasses look there
        sys.path.insert(0, str(path.resolve().parent))  # for imports of files beside it
        spec.loader.exec_module(module)
        network = getattr(module, name)()
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"{given} makes no network", got=first_line(error), expected="a function without arguments "
                         "that returns a torch.nn.Module with its weights") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{given} makes no network", got=type(network).__name__,
                         expected="a torch.nn.Module with its weights")
    return network.eval().requires_grad_(False)


def check_map(maps: Any, images: int, source: str) -> NDArray[np.float32]:
    """The maps as float32 ``[N, 1, h, w]``. Raises InputError if they have another shape or are not numbers."""
    shape = tuple(getattr(maps, "shape", ()))
    if len(shape) != 4 or shape[0] != images or shape[1] != 1:
        raise InputError(f"the output of {source} is no map", got=f"shape {shape}" if shape else type(maps).__name__,
                         expected=f"[{images}, 1, h, w] for {images} images",
                         next="Wrap the network, so that it returns its map alone.")
    return np.asarray(maps, np.float32)


def torch_to_graph(given: str, size: tuple[int, int, int], normalisation: Normalisation, images: NDArray[np.uint8],
                   graph: Path) -> NDArray[np.float32]:
    """Write the graph of a torch network, and return its own maps. Raises InputError if it gives none or cannot be
    exported.
    """
    network = Normalised(load_factory(given), normalisation)
    try:
        with torch.inference_mode():
            check_map(Deployed(network)(torch.from_numpy(images[:2])), 2, given)
        expected = check_map(torch_maps(network, images), len(images), given)
        write_graph(network, size, graph)
    except InputError:
        raise
    except Exception as error:  # a shape that does not fit, or an operator that ONNX lacks
        raise InputError(f"{given} cannot be exported for images of {size[0]}x{size[1]} px and {size[2]} channels",
                         got=first_line(error),
                         expected="a network that torch.onnx.export takes, with a batch of any size") from error
    return expected


def read_foreign_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX model with one input, one output and only standard operators. Raises InputError."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # whatever protobuf or the checker raises for a damaged file
        raise InputError(f"{path} is no whole ONNX model", got=(str(error).splitlines() or [type(error).__name__])[0],
                         expected="a model that onnx.checker accepts") from error
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not
                      in ("", "ai.onnx")})
    if foreign or model.functions:
        raise InputError(f"{path} has operators that TensorRT does not take", got=", ".join(foreign[:5])
                         or "functions of its own", expected="standard ONNX operators")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise InputError(f"{path} has more than an image and a map",
                         got=f"{len(inputs)} inputs, {len(model.graph.output)} outputs", expected="one of each",
                         next="Take the others out, as by onnx.utils.extract_model.")
    if inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise InputError(f"the input of {path} is no image", got=helper.printable_value_info(inputs[0]),
                         expected="float32 [N, C, H, W]")
    if model.graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise InputError(f"the output of {path} is no map", got=helper.printable_value_info(model.graph.output[0]),
                         expected="float32 [N, 1, h, w]")
    for value in (*model.graph.input, *model.graph.output):
        for axis, length in enumerate(value.type.tensor_type.shape.dim):
            if length.HasField("dim_value") and length.dim_value <= 0:  # how some exporters write a dynamic axis
                length.dim_param = f"open_{axis}"
    model.ir_version = max(model.ir_version, 4)  # below 4, every weight had to be an input as well
    return model


def graph_size(model: onnx.ModelProto, size: tuple[int, int, int], given: bool, path: Path) -> tuple[int, int, int]:
    """Height, width and channels of a graph's input; ``size`` for dynamic axes. Raises InputError if they
    contradict.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in weights)
    _, channels, height, width = (d.dim_value for d in value.type.tensor_type.shape.dim)  # 0: dynamic
    found = (height or size[0], width or size[1], channels or size[2])
    if (given and found[:2] != size[:2]) or found[2] not in (1, 3):
        raise InputError(f"{path} takes other images", got=f"{size[0]}x{size[1]} px" if found[2] in (1, 3)
                         else f"{found[2]} channels", expected=f"{found[0]}x{found[1]} px" if found[2] in (1, 3)
                         else "1 or 3 channels")
    return found


def onnx_to_graph(path: Path, model: onnx.ModelProto, size: tuple[int, int, int], normalisation: Normalisation,
                  images: NDArray[np.uint8], graph: Path) -> NDArray[np.float32]:
    """Write ``model`` preceded by a uint8 NHWC input, scaling and normalisation; return its own maps. Raises
    InputError.
    """
    height, width, channels = size
    weights = {tensor.name for tensor in model.graph.initializer}
    entry = next(value for value in model.graph.input if value.name not in weights)
    batch = entry.type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value"):
        raise InputError(f"{path} takes one size of batch alone", got=f"batch {batch.dim_value}",
                         expected="a dynamic batch", next="Export it again with a dynamic first axis.")
    nodes = [
        helper.make_node("Cast", ["image"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["as_float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalised"]),
    ]
    mean, std = (np.array(values, np.float64).reshape(1, -1, 1, 1) for values in (normalisation.mean,
                                                                                  normalisation.std))
    constants = [numpy_helper.from_array((1 / (255 * std)).astype(np.float32), "gain"),
                 numpy_helper.from_array((-mean / std).astype(np.float32), "offset")]
    taken = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, channels])
    given = helper.make_tensor_value_info("normalised", TensorProto.FLOAT, ["N", channels, height, width])
    before = helper.make_model(
        helper.make_graph(nodes, "prepare", [taken], [given], constants), opset_imports=model.opset_import,
        ir_version=model.ir_version)
    values = (images.transpose(0, 3, 1, 2) / 255 - mean) / std
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        maps = session.run(None, {entry.name: values.astype(np.float32)})[0]
        expected = check_map(maps, len(images), str(path))
        whole = compose.merge_models(before, compose.add_prefix(model, "own/"),
                                     io_map=[("normalised", f"own/{entry.name}")])
        node = next(node for node in whole.graph.node if whole.graph.output[0].name in node.output)
        node.output[list(node.output).index(whole.graph.output[0].name)] = "map"
        for other in whole.graph.node:
            other.input[:] = ["map" if name == whole.graph.output[0].name else name for name in other.input]
        del whole.graph.output[:]
        whole.graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT,
                                                                ["N", 1, *expected.shape[2:]]))
        onnx.checker.check_model(whole, full_check=True)
        onnx.save(whole, graph)
    except InputError:
        raise
    except Exception as error:  # a graph that ONNX Runtime cannot run, or that does not accept these images
        raise InputError(f"{path} does not run on {len(images)} images of {height}x{width} px and {channels} channels",
                         got=(str(error).splitlines() or [type(error).__name__])[0],
                         expected="a network of standard operators") from error
    return expected


def export_foreign(out: Path, data: Path, *, torch_factory: str | None = None, onnx_model: Path | None = None,
                   size: tuple[int, int] | None, channels: int, mean: str, std: str, post_filter: str, tile: int | None,
                   progress: Progress) -> tuple[Bundle, float]:
    """Write the bundle ``out`` from a network trained elsewhere.

    data: good images that the network was not trained on; they check the graph, become golden parts, and give the
    threshold. Exactly one of torch_factory (``file.py:factory``) and onnx_model must be given. Returns the bundle and
    its largest difference from the network, as a share of the map's range. Raises InputError for unusable arguments,
    BundleError if a runtime gives other maps.
    """
    steps = tuple(step.strip() for step in post_filter.split(","))
    try:
        check_post_filter(steps)
    except ValueError as error:
        raise InputError("--post-filter cannot be used", got=post_filter, expected=str(error)) from error
    model, input_size = None, (*(size or (256, 256)), channels)
    if onnx_model is not None:
        model = read_foreign_graph(onnx_model)
        input_size = graph_size(model, input_size, size is not None, onnx_model)
    normalisation = Normalisation.parse(mean, std, input_size[2])
    good, sizes = good_parts(data, tile, progress)
    images = proof_images(data, good, input_size, tile)
    source = torch_factory or str(onnx_model)
    temporary = claim_folder(out, "bundle")
    try:
        graph = temporary / "model" / "fp32.onnx"
        graph.parent.mkdir()
        if model is not None and onnx_model is not None:
            expected = onnx_to_graph(onnx_model, model, input_size, normalisation, images, graph)
        else:
            expected = torch_to_graph(source, input_size, normalisation, images, graph)
        file = onnx_model or Path(source.rpartition(":")[0])
        fit = {"source": source, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
               "mean": list(normalisation.mean), "std": list(normalisation.std)}
        fitted = Fitted("own", input_size, sizes, fit, str(good_folder(data)), [], good, steps, None if tile is None
                        else (tile, tile))
        return complete(temporary, out, graph, images, expected, fitted)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""A user's own network becomes a bundle, from torch or ONNX, with its normalisation; a graph without a map is
refused.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edge.bundle.bundle import load_bundle
from edge.images.files import list_images, read_image
from edge.images.frames import prepare_frame
from edge.inspection.inspector import Inspector

FACTORY = '''
import torch
from torch import nn


class Blobs(nn.Module):
    """How far a blurred image is from the normalisation's mean."""

    def __init__(self, channels, stride=2):
        super().__init__()
        self.blur = nn.Conv2d(channels, 4, 5, stride, 2)
        self.mix = nn.Conv2d(4, 1, 1)

    def forward(self, image):
        return self.mix(self.blur(image).square()).abs()


def colour():
    torch.manual_seed(1)
    return Blobs(3)


def grey():
    torch.manual_seed(2)
    return Blobs(1)


def score_alone():
    return nn.Sequential(Blobs(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def broken():
    raise RuntimeError("no weights here")


def no_network():
    return 5


def leaves():
    raise SystemExit("bye")


class Squeezed(Blobs):
    def forward(self, image):
        return super().forward(image).squeeze().unsqueeze(1)


def squeezed():
    return Squeezed(3)


class Double(Blobs):
    def forward(self, image):
        return super().forward(image).double()


def double():
    return Double(3)


def beside():
    import lies_beside

    return lies_beside.make(Blobs)
'''
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FACTORY)
    return path


def network(path, name):
    space: dict = {}
    exec(path.read_text(), space)
    return space[name]().eval()


def expected_map(net, frame, size, mean, std):
    """Calculated without any of the export's code."""
    prepared = np.empty(size, np.uint8)
    prepare_frame(frame, prepared)
    image = (prepared.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    with torch.inference_mode():
        return net(torch.from_numpy(image.transpose(2, 0, 1)[None])).numpy()[0, 0]


def write_own_onnx(net, path, height, width, channels, dynamic=True):
    axes = {"x": {0: "batch"}, "y": {0: "batch"}} if dynamic else None
    torch.onnx.export(net, (torch.zeros(1, channels, height, width),), path, input_names=["x"], output_names=["y"],
                      dynamic_axes=axes, opset_version=17, dynamo=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize(("name", "channels"), [("colour", 3), ("grey", 1)])
def test_the_bundle_gives_the_network_s_own_map(factory, cloth, tmp_path, lineside, kind, name, channels):
    mean, std = (MEAN, STD) if channels == 3 else ((0.4,), (0.2,))
    net, size = network(factory, name), (64, 96, channels)
    source = f"{factory}:{name}"
    if kind == "onnx":
        source = tmp_path / "own.onnx"
        write_own_onnx(net, source, 64, 96, channels)
    code, out, err = lineside("export", f"--{kind}", source, "--data", cloth / "test" / "good", "--size", "64x96",
                              "--channels", channels, "--mean", ",".join(map(str, mean)), "--std",
                              ",".join(map(str, std)), "--out", tmp_path / "bundle", "--json")
    assert code == 0, err
    assert json.loads(out)["parity"] < 1e-3 and json.loads(out)["detector"] == "own"
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.card.input.height, bundle.card.input.width, bundle.card.input.channels) == size
    assert (bundle.card.map.height, bundle.card.map.width) == (32, 48)
    frame = read_image(list_images(cloth / "test")[0])
    with Inspector(bundle, threads=1) as inspector:
        got = inspector.raw_map(frame)
    expected = expected_map(net, frame, size, mean, std)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.ptp(expected))


def test_the_bundle_is_calibrated_inspects_and_has_golden_parts(factory, cloth, tmp_path, lineside):
    lineside("export", "--torch", f"{factory}:grey", "--data", cloth, "--channels", 1, "--size", 64,
             "--post-filter", "median:3,threshold,open:3", "--out", tmp_path / "bundle")
    assert lineside("calibrate", tmp_path / "bundle", "--false-reject-rate", "0.1")[0] == 0
    code, out, _ = lineside("inspect", tmp_path / "bundle", cloth / "test" / "hole", "--out", tmp_path / "o", "--json")
    assert code == 0 and {row["verdict"] for row in json.loads(out)} <= {"PASS", "REJECT"}
    assert load_bundle(tmp_path / "bundle").decision.post_filter == ["median:3", "threshold", "open:3"]
    assert len(list((tmp_path / "bundle" / "model" / "golden").glob("*.png"))) >= 5


@pytest.mark.parametrize(("options", "words"), [
    (["--torch", "{own}:missing"], "no network"), (["--torch", "{own}:broken"], "no weights here"),
    (["--torch", "{own}:no_network"], "int"),
    (["--torch", "{own}:leaves"], "SystemExit: bye"), (["--torch", "{own}:squeezed"], "is no map"),
    (["--torch", "{own}:score_alone"], "is no map"), (["--torch", "nowhere.py:colour"], "file.py:factory"),
    (["--torch", "{own}:colour", "--channels", "1"], "cannot be exported"),
    (["--torch", "{own}:colour", "--mean", "0.5,0.5"], "--mean"),
    (["--torch", "{own}:colour", "--std", "0"], "above 0"), (["--torch", "{own}:colour", "--size", "big"], "--size"),
    (["--torch", "{own}:colour", "--post-filter", "mean:4"], "--post-filter"),
    (["--torch", "{own}:colour", "--channels", "2"], "--channels"),
    (["--onnx", "{own}"], "no whole ONNX model"), (["--onnx", "x", "--torch", "y"], "at a time"), ([], "at a time"),
])
def test_what_cannot_be_used_is_one_message_and_leaves_nothing(factory, cloth, tmp_path, lineside, options, words):
    out = tmp_path / "out"
    given = [option.replace("{own}", str(factory)) for option in options]
    code, _, err = lineside("export", *given, "--data", cloth, "--out", out)
    assert code == 2 and words in err and not out.exists() and not list(tmp_path.glob(".*"))


def test_doubles_become_float32_and_what_lies_beside_the_factory_is_found(factory, cloth, tmp_path, lineside):
    beside = "from __future__ import annotations\n\ndef make(cls):\n    return cls(3)\n"
    (tmp_path / "lies_beside.py").write_text(beside)
    for name in ("double", "beside"):
        code, _, err = lineside("export", "--torch", f"{factory}:{name}", "--data", cloth, "--size", 64,
                                "--post-filter", "median:5,threshold", "--out", tmp_path / name)
        assert code == 0, err


def test_data_belongs_to_a_network_of_one_s_own(factory, fitted_run, cloth, tmp_path, lineside):
    assert "no --data" in lineside("export", "--torch", f"{factory}:colour", "--out", tmp_path / "b")[2]
    assert "a run has its own images" in lineside("export", fitted_run, "--data", cloth, "--out", tmp_path / "b")[2]


def graph_of(operator, inputs, output, domain=""):
    node = helper.make_node(operator, [value.name for value in inputs], [output.name], domain=domain)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", inputs, [output]), opset_imports=opsets, ir_version=8)


def image(name="x", shape=("N", 3, 64, 64), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


DOUBLE = TensorProto.DOUBLE
FIXED, TWO, FLAT = (1, 1, 64, 64), ("N", 2, 64, 64), ("N", 1, 32, 64)


@pytest.mark.parametrize(("model", "words"), [
    (graph_of("Gelu", [image()], image("y"), "com.microsoft"), "com.microsoft.Gelu"),
    (graph_of("Add", [image(), image("z")], image("y")), "2 inputs"),
    (graph_of("Abs", [image(kind=DOUBLE)], image("y", kind=DOUBLE)), "float32 [N, C, H, W]"),
    (graph_of("Abs", [image()], image("y")), "is no map"),
    (graph_of("Abs", [image(shape=FIXED)], image("y", FIXED)), "dynamic batch"),
    (graph_of("Abs", [image(shape=TWO)], image("y", TWO)), "2 channels"),
    (graph_of("Abs", [image(shape=FLAT)], image("y", FLAT)), "32x64 px"),
], ids=["operator", "two inputs", "double", "no map", "fixed batch", "channels", "size"])
def test_graphs_that_cannot_be_used_say_why(cloth, tmp_path, lineside, model, words):
    onnx.save(model, tmp_path / "own.onnx")
    code, _, err = lineside("export", "--onnx", tmp_path / "own.onnx", "--data", cloth, "--size", "64", "--out",
                            tmp_path / "out")
    assert code == 2 and words in err and not (tmp_path / "out").exists()


def test_a_graph_of_an_old_exporter_with_open_sides_is_taken(cloth, tmp_path, lineside):
    model = graph_of("Abs", [image(shape=("N", 1, -1, 0))], image("y", ("N", 1, "h", "w")))
    model.ir_version = 3
    onnx.save(model, tmp_path / "own.onnx")
    code, _, err = lineside("export", "--onnx", tmp_path / "own.onnx", "--data", cloth, "--size", "48x64", "--out",
                            tmp_path / "out")
    assert code == 0, err
    assert (load_bundle(tmp_path / "out").card.map.height, load_bundle(tmp_path / "out").card.map.width) == (48, 64)


def test_a_graph_s_own_size_is_taken(cloth, tmp_path, lineside):
    model = graph_of("Abs", [image(shape=("N", 1, 48, 80))], image("y", ("N", 1, 48, 80)))
    onnx.save(model, tmp_path / "own.onnx")
    assert lineside("export", "--onnx", tmp_path / "own.onnx", "--data", cloth, "--out", tmp_path / "out")[0] == 0
    card = load_bundle(tmp_path / "out").card
    assert (card.input.height, card.input.width, card.input.channels) == (48, 80, 1)

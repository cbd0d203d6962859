"""The packaged features are those that `export.embedding` writes."""

from __future__ import annotations

import numpy as np
import torch

from calib.unlike import GRAPH
from export.embedding import LocalFeatures
from export.onnx import Deployed, onnxruntime_maps


def test_the_packaged_graph_gives_the_network_s_features():
    image = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = Deployed(LocalFeatures()).eval()(torch.from_numpy(image)).numpy()
    got = onnxruntime_maps(GRAPH, image)
    assert got.shape == (2, 64, 32, 32)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.ptp(expected))

"""Writes `calib/embedding.onnx`: the first layers of an ImageNet network, so that `lineside collect` works without
torch.

    python -m export.embedding calib/embedding.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectors.backbones import load_backbone
from export.onnx import write_graph

SIDE = 256  # px of the square input


class LocalFeatures(nn.Module):
    """Image float32 ``[N, 3, 256, 256]`` in 0..1 -> features float32 ``[N, 64, 32, 32]``: EfficientNet-Lite0 at strides
    4 and 8.

    Each is a mean over 3 x 3 positions, as in PatchCore (Roth et al. 2022, section 3.1).
    """

    def __init__(self) -> None:
        super().__init__()
        backbone, _ = load_backbone("resnet18", None)
        backbone.stages = backbone.stages[:3]
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        _, fine, coarse = self.backbone(image)
        return torch.cat([F.avg_pool2d(x, 3, 1, 1) for x in (F.avg_pool2d(fine, 2), coarse)], 1)


def write_embedding(path: Path) -> None:
    """Write the graph: uint8 ``[N, 256, 256, 3]`` in, features ``[N, 64, 32, 32]`` out."""
    write_graph(LocalFeatures(), (SIDE, SIDE, 3), path, "features")


if __name__ == "__main__":
    write_embedding(Path(sys.argv[1]))

"""IMM, the image matching module of local OCC (Fig. 4); the rigid motions that it finds; and whether parts need it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.images import MINIATURE, miniatures, most_typical


class ImageMatching(nn.Module):
    """IMM, Fig. 4: N_P, shared by image and template, and N_R, which regresses Tx, Ty and theta."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.n_p = nn.Sequential(*layers)
        self.n_r = nn.Sequential(
            nn.Conv2d(128, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(8), nn.Flatten(),
            nn.Linear(64 * 64, 128), nn.ReLU(), nn.Linear(128, 3),
        )
        nn.init.zeros_(self.n_r[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.n_r[-1].bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, template_features: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``[N, 3, H, W]`` and N_P of the template ``[1, 64, h, w]`` -> shifts ``[N, 2]`` in half sides, and
        turns ``[N]`` in rad.
        """
        features = self.n_p(image - 0.5)
        joined = torch.cat([features, template_features.to(features.dtype).expand_as(features)], 1)
        raw = self.n_r(joined).float()
        # Small at first: beyond the object's size the loss is flat, and no gradient leads back.
        return 0.2 * raw[:, :2], 0.3 * raw[:, 2]


def rigid(shift: Tensor, turn: Tensor) -> Tensor:
    """The sampling matrices ``[N, 2, 3]`` of shifts and turns: x_in = R x_out + t, in half sides from the centre."""
    cos, sin = torch.cos(turn), torch.sin(turn)
    return torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).reshape(-1, 2, 3)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The sampling matrices ``[N, 2, 3]`` of ``inner`` followed by ``outer``: x_in = R_o (R_i x_out + t_i) + t_o."""
    turn = outer[:, :, :2]
    return torch.cat([turn @ inner[:, :, :2], turn @ inner[:, :, 2:] + outer[:, :, 2:]], 2)


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of rigid sampling matrices ``[N, 2, 3]``: R^T and -R^T t."""
    turn = matrix[:, :, :2].transpose(1, 2)
    return torch.cat([turn, -(turn @ matrix[:, :, 2:])], 2)


def match(matching: ImageMatching, image: Tensor, template_features: Tensor, passes: int) -> list[Tensor]:
    """The sampling matrices ``[N, 2, 3]`` onto the template after each pass; each corrects the previous one's error.

    A pass learns only from its own correction: no gradient flows into the passes before it.
    """
    found = [rigid(*matching(image, template_features))]
    while len(found) < passes:
        before = found[-1].detach()
        found.append(compose(before, rigid(*matching(warp(image, before, "border"), template_features))))
    return found


def warp(image: Tensor, matrix: Tensor, border: str) -> Tensor:
    """f_geo of eq 2, a spatial transformer: resample square images ``[N, C, H, W]`` by matrices ``[N, 2, 3]``.

    border: the padding mode of F.grid_sample.
    """
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=border, align_corners=False)


def parts_come_moved(pixels: NDArray[np.uint8], sample: int = 16) -> bool:
    """Whether good images uint8 ``[N, H, W, C]`` show one object, shifted or turned.

    They do if a rigid motion makes most of the ``sample`` images far more similar to the typical one. A periodic
    texture is no such object: moved by less than a period, it reaches a similarity of 0.7 to 0.82; rendered objects
    reach 0.99.
    """
    small = miniatures(pixels)
    template = small[most_typical(small)]
    motions, before, after = [], [], []
    for image in small[np.linspace(0, len(small) - 1, min(sample, len(small))).astype(int)]:
        best, motion = float((image * template).mean()), 0.0
        before.append(best)
        for degrees in (-20, -10, 0, 10, 20):
            start = cv2.getRotationMatrix2D(((MINIATURE - 1) / 2,) * 2, degrees, 1.0).astype(np.float32)
            try:
                likeness, matrix = cv2.findTransformECC(template, image, start, cv2.MOTION_EUCLIDEAN,
                                                        (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4))
            except cv2.error:  # did not converge from this angle
                continue
            if likeness > best + 0.02:
                corners = np.array([[8, 8, 1], [55, 8, 1], [8, 55, 1], [55, 55, 1]], np.float32)
                moved = np.linalg.norm(corners @ matrix.T - corners[:, :2], axis=1)
                best, motion = likeness, float(moved.mean())
        after.append(best)
        motions.append(motion)
    much = np.median(motions) > 0.02 * MINIATURE
    closer = np.median(1 - np.array(after)) < 0.6 * np.median(1 - np.array(before))
    return bool(much and np.median(after) > 0.85 and closer)

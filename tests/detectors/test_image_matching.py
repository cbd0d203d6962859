"""Rigid motions, there and back."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from detectors.image_matching import ImageMatching, compose, inverse, match, rigid, warp

RNG = np.random.default_rng(0)


def test_the_warp_is_a_turn_and_a_shift_of_pixels():
    """Against OpenCV: x_in = R x_out + t in half sides from the centre."""
    image = cv2.GaussianBlur(RNG.random((64, 64)).astype(np.float32), (0, 0), 3)
    tx, ty, angle = 0.2, -0.1, 0.3
    matrix = rigid(torch.tensor([[tx, ty]]), torch.tensor([angle]))
    got = warp(torch.from_numpy(image)[None, None], matrix, "zeros")[0, 0].numpy()
    cos, sin, centre = np.cos(angle), np.sin(angle), 31.5
    back = np.array([[cos, -sin, 0], [sin, cos, 0]])
    back[:, 2] = np.array([tx, ty]) * 32 + centre - back[:, :2] @ (centre, centre)
    expected = cv2.warpAffine(image, back, (64, 64), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    np.testing.assert_allclose(got[8:-8, 8:-8], expected[8:-8, 8:-8], atol=0.01)


def test_the_way_back_undoes_the_way_there():
    matrix = rigid(torch.tensor([[0.1, -0.2], [0.0, 0.3]]), torch.tensor([0.4, -0.2]))
    points = torch.randn(2, 2, 10)
    there = matrix[:, :, :2] @ points + matrix[:, :, 2:]
    way_back = inverse(matrix)
    torch.testing.assert_close(way_back[:, :, :2] @ there + way_back[:, :, 2:], points)


def test_composed_motions_are_made_one_after_the_other():
    inner = rigid(torch.tensor([[0.1, -0.2]]), torch.tensor([0.4]))
    outer = rigid(torch.tensor([[-0.3, 0.1]]), torch.tensor([-0.1]))
    points = torch.randn(1, 2, 10)
    after_inner = inner[:, :, :2] @ points + inner[:, :, 2:]
    both = compose(outer, inner)
    torch.testing.assert_close(both[:, :, :2] @ points + both[:, :, 2:],
                               outer[:, :, :2] @ after_inner + outer[:, :, 2:])


def test_a_further_pass_corrects_what_the_one_before_it_left():
    class HalfTheWay(ImageMatching):
        """Finds half of the shift of a bright spot from the centre, in x."""

        def forward(self, image, template_features):
            columns = torch.linspace(-1, 1, image.shape[-1])
            x = (image.mean((1, 2)) * columns).sum(1) / image.mean((1, 2)).sum(1)
            return torch.stack([x / 2, torch.zeros_like(x)], 1), torch.zeros_like(x)

    image = torch.zeros(1, 3, 64, 64)
    image[..., 44:52] = 1
    spot = float((torch.linspace(-1, 1, 64)[44:52]).mean())
    left = [spot - float(there[0, 0, 2]) for there in match(HalfTheWay(), image, torch.zeros(1, 64, 2, 2), 3)]
    np.testing.assert_allclose(left, [spot / 2, spot / 4, spot / 8], atol=0.02)

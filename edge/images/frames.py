"""Camera frames as arrays: what they are, and how they become a network's input. The same code for fitting and for the
line.

A *frame* is a C-contiguous uint8 array ``[H, W, C]`` with C = 1 (grey) or 3 (RGB order).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import InputError

Frame = NDArray[np.uint8]


def frame_hash(frame: Frame) -> str:
    """SHA-256 of a frame's pixels and shape: the same for a copy under another name or in another lossless format.

    Grey counts as one channel even if the file stores three.
    """
    if is_grey(frame):
        frame = frame[..., :1]
    digest = hashlib.sha256(repr(frame.shape).encode())
    digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


def is_grey(frame: Frame) -> bool:
    """Whether a frame has no colour: one channel, or three equal ones."""
    if frame.shape[2] == 1:
        return True
    return bool(np.array_equal(frame[..., 0], frame[..., 1]) and np.array_equal(frame[..., 1], frame[..., 2]))


@dataclass(frozen=True)
class FrameSizes:
    """The frame sizes (px) that a model was fitted on, and whether those frames were in colour."""

    min_width: int
    max_width: int
    min_height: int
    max_height: int
    colour: bool

    @staticmethod
    def of(sizes: Sequence[tuple[int, int]], grey: Sequence[bool]) -> FrameSizes:
        """The sizes of frames, given the (height, width) and `is_grey` of each. Raises InputError if grey and colour
        are mixed.
        """
        if any(grey) and not all(grey):
            raise InputError("grey and colour images are mixed",
                             got=f"{sum(grey)} grey and {len(grey) - sum(grey)} colour",
                             expected="only grey or only colour images, as the camera delivers them")
        heights, widths = zip(*sizes, strict=True)
        return FrameSizes(min(widths), max(widths), min(heights), max(heights), not grey[0])

    def check(self, frame: Frame, seen: tuple[int, int] | None = None) -> None:
        """Raise InputError for a frame whose size or channels differ so much from the fitted ones that a verdict would
        be meaningless.

        seen: (height, width) of a tile, if the network sees tiles instead of whole frames.
        """
        height, width = seen or frame.shape[:2]
        if not (self.min_width <= 2 * width <= 4 * self.max_width and self.min_height <= 2 * height
                <= 4 * self.max_height):
            raise InputError(
                "the frame's size does not fit the model" if seen is None else "the tiles' size does not fit the model",
                got=f"{width}x{height} px",
                expected=f"between half and double of the fitted {self.min_width}-{self.max_width} x "
                         f"{self.min_height}-{self.max_height} px",
                next="Use the camera settings that the fit used, or run `lineside fit` on frames of this size.",
            )
        if (self.colour and frame.shape[2] != 3) or (not self.colour and not is_grey(frame)):
            raise InputError(
                "the frame has a wrong channel count",
                got="a grey frame (1 channel)" if frame.shape[2] == 1 else "a colour frame (3 channels)",
                expected="colour (3 channels)" if self.colour else "grey (1 channel)",
                next="Use the pixel format that the fit used, or run `lineside fit` on such frames.",
            )


def prepare_frame(frame: Frame, out: Frame) -> None:
    """Write a frame (uint8 ``[H, W, C]``) into a network input ``out`` (uint8 ``[h, w, c]``): channels, then size.

    Colour becomes grey for a one-channel network (ITU-R 601 weights); grey never becomes colour: it is repeated
    over equal channels. Shrinking averages over areas, growing interpolates bilinearly.
    """
    if out.shape[2] == 1 and frame.shape[2] == 3:
        frame = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[:, :, None]
    elif out.shape[2] == 3 and frame.shape[2] == 1:
        frame = np.asarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    height, width = out.shape[:2]
    if frame.shape[:2] == (height, width):
        np.copyto(out, frame)
        return
    shrinks = frame.shape[0] * frame.shape[1] > height * width
    resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    np.copyto(out, resized.reshape(out.shape))

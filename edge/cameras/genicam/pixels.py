"""Converts the pixel formats of industrial cameras (GenICam PFNC) to frames: 8 bit grey, or RGB.

Of values with more than 8 bits, the highest 8 are used. A Bayer format is named by the first two pixels of its first
row: ``BayerRG8`` has rows R G R G ... and G B G B ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images.frames import Frame

Bytes = NDArray[np.uint8]
Packing = Literal["", "p", "Packed"]  # whole bytes; no gaps, lowest bits first; GigE Vision: 2 px in 3 bytes

# OpenCV's short names start at the second row and column (its BayerBG is BayerRG here), its long names at the first.
_BAYER = {"BayerRG": cv2.COLOR_BayerRGGB2RGB, "BayerGR": cv2.COLOR_BayerGRBG2RGB, "BayerGB": cv2.COLOR_BayerGBRG2RGB,
          "BayerBG": cv2.COLOR_BayerBGGR2RGB}


@dataclass(frozen=True)
class PixelFormat:
    """A pixel format that can be converted to a frame."""

    name: str  # as in the SFNC
    kind: str  # Mono, Bayer.., RGB, BGR
    bits: int  # per value
    packing: Packing = ""

    @property
    def is_frame(self) -> bool:
        """Whether the camera's bytes are a frame without any conversion."""
        return self.bits == 8 and self.kind in ("Mono", "RGB")

    @property
    def channels(self) -> int:
        """Values per pixel, as the camera sends them: 3 for RGB and BGR, otherwise 1."""
        return 3 if self.kind in ("RGB", "BGR") else 1

    def size(self, pixels: int) -> int:
        """The number of bytes for this many pixels."""
        if self.packing == "p":
            return -(-pixels * self.bits // 8)
        if self.packing == "Packed":
            return -(-pixels * 3 // 2)
        return pixels * self.channels * (1 if self.bits == 8 else 2)


def _formats() -> dict[int, PixelFormat]:
    codes: dict[int, tuple[str, int, Packing]] = {
        0x01080001: ("Mono", 8, ""), 0x01100003: ("Mono", 10, ""),
        0x01100005: ("Mono", 12, ""), 0x01100007: ("Mono", 16, ""),
        0x010C0004: ("Mono", 10, "Packed"), 0x010C0006: ("Mono", 12, "Packed"),
        0x010A0046: ("Mono", 10, "p"), 0x010C0047: ("Mono", 12, "p"),
        0x02180014: ("RGB", 8, ""), 0x02180015: ("BGR", 8, ""),
    }
    for i, bayer in enumerate(("BayerGR", "BayerRG", "BayerGB", "BayerBG")):
        codes |= {0x01080008 + i: (bayer, 8, ""), 0x0110000C + i: (bayer, 10, ""), 0x01100010 + i: (bayer, 12, ""),
                  0x0110002E + i: (bayer, 16, ""), 0x010C0026 + i: (bayer, 10, "Packed"),
                  0x010C002A + i: (bayer, 12, "Packed")}
    for i, bayer in enumerate(("BayerBG", "BayerGB", "BayerGR", "BayerRG")):
        codes |= {0x010A0052 + 2 * i: (bayer, 10, "p"), 0x010C0053 + 2 * i: (bayer, 12, "p")}
    return {code: PixelFormat(f"{kind}{bits}{packing}", kind, bits, packing)
            for code, (kind, bits, packing) in codes.items()}


FORMATS = _formats()  # by the PFNC code that cameras send


def to_frame(data: Bytes, form: PixelFormat, width: int, height: int, row_padding: int = 0) -> Frame:
    """Convert a camera's bytes to a frame: uint8 ``[height, width, 1]``, or ``[height, width, 3]`` (RGB) for colour.

    data: uint8 ``[N]``, may be longer than the image. row_padding: bytes after each row. If ``form.is_frame`` and rows
    have no padding, the frame is a view of ``data``, otherwise a new array. Raises ValueError if ``data`` is too short.
    """
    rows = _rows(data, form, width, height, row_padding)
    values: NDArray[np.uint8]
    if form.packing:
        values = _unpack(rows, form, width * height if len(rows) == 1 else width).reshape(height, width)
    elif form.bits == 8:
        values = rows.reshape(height, width, form.channels)
    elif form.bits == 16:
        values = rows.reshape(height, width, 2)[..., 1]
    else:
        values = (rows.view("<u2").reshape(height, width) >> (form.bits - 8)).astype(np.uint8)
    if form.kind == "BGR":
        values = np.asarray(cv2.cvtColor(values, cv2.COLOR_BGR2RGB), np.uint8)
    elif form.kind in _BAYER:
        bayer = np.ascontiguousarray(values.reshape(height, width))
        values = np.asarray(cv2.cvtColor(bayer, _BAYER[form.kind]), np.uint8)
    return np.ascontiguousarray(values).reshape(height, width, -1)


def _rows(data: Bytes, form: PixelFormat, width: int, height: int, row_padding: int) -> Bytes:
    """The bytes as ``[height, bytes]``, or as ``[1, bytes]`` if the rows have no padding."""
    if row_padding:
        size = form.size(width)
        needed = height * (size + row_padding)
        if len(data) < needed - row_padding:
            raise ValueError(f"{len(data)} bytes, {needed} needed for {width}x{height} px of {form.name}")
        padded = np.zeros(needed, np.uint8)
        padded[:len(data)] = data[:needed]
        return np.ascontiguousarray(padded.reshape(height, size + row_padding)[:, :size])
    size = form.size(width * height)
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes, {size} needed for {width}x{height} px of {form.name}")
    return data[:size].reshape(1, size)


def _unpack(rows: Bytes, form: PixelFormat, pixels: int) -> Bytes:
    """The highest 8 bits of packed values: ``[rows, bytes]`` to ``[rows, pixels]``."""
    group = 5 if (form.packing, form.bits) == ("p", 10) else 3  # bytes for 4 px, or for 2 px
    count = -(-rows.shape[1] // group)
    whole = np.zeros((len(rows), count * group), np.uint8)
    whole[:, :rows.shape[1]] = rows
    b = [whole[:, i::group] for i in range(group)]
    if form.packing == "Packed":  # three bytes: high bits of the first px, low bits of both, high bits of the second
        high = [b[0], b[2]]
    elif form.bits == 10:
        high = [b[0] >> 2 | b[1] << 6, b[1] >> 4 | b[2] << 4, b[2] >> 6 | b[3] << 2, b[4]]
    else:
        high = [b[0] >> 4 | b[1] << 4, b[2]]
    return np.stack(high, axis=-1).reshape(len(rows), -1)[:, :pixels]

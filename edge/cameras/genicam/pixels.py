"""Pixel formats of industrial cameras (GenICam PFNC) as frames: the high 8 bits of grey, and colour from mosaics.

A *mosaic* (Bayer) is named by the first two pixels of its first row: ``BayerRG8`` has rows of R G and of G B. Grey stays grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.images.frames import Frame

Bytes = NDArray[np.uint8]
Packing = Literal["", "p", "Packed"]  # whole bytes; without a gap, lowest bits first; GigE Vision: 2 px in 3 bytes

# OpenCV's short names are those of the second row and column on (its BayerBG is a sensor's BayerRG); its long ones are a sensor's.
_MOSAICS = {"BayerRG": cv2.COLOR_BayerRGGB2RGB, "BayerGR": cv2.COLOR_BayerGRBG2RGB, "BayerGB": cv2.COLOR_BayerGBRG2RGB,
            "BayerBG": cv2.COLOR_BayerBGGR2RGB}


@dataclass(frozen=True)
class PixelFormat:
    """A format that frames can be made of."""

    name: str  # of the SFNC
    kind: str  # Mono, Bayer.., RGB, BGR
    bits: int  # of a value
    packing: Packing = ""

    @property
    def is_frame(self) -> bool:
        """Whether the camera's bytes are a frame as they are."""
        return self.bits == 8 and self.kind in ("Mono", "RGB")

    @property
    def channels(self) -> int:
        """Of the camera's values: 1, or 3 for RGB and BGR."""
        return 3 if self.kind in ("RGB", "BGR") else 1

    def size(self, pixels: int) -> int:
        """Bytes of so many pixels."""
        if self.packing == "p":
            return -(-pixels * self.bits // 8)
        if self.packing == "Packed":
            return -(-pixels * 3 // 2)
        return pixels * self.channels * (1 if self.bits == 8 else 2)


def _formats() -> dict[int, PixelFormat]:
    codes: dict[int, tuple[str, int, Packing]] = {
        0x01080001: ("Mono", 8, ""), 0x01100003: ("Mono", 10, ""), 0x01100005: ("Mono", 12, ""), 0x01100007: ("Mono", 16, ""),
        0x010C0004: ("Mono", 10, "Packed"), 0x010C0006: ("Mono", 12, "Packed"),
        0x010A0046: ("Mono", 10, "p"), 0x010C0047: ("Mono", 12, "p"),
        0x02180014: ("RGB", 8, ""), 0x02180015: ("BGR", 8, ""),
    }
    for i, mosaic in enumerate(("BayerGR", "BayerRG", "BayerGB", "BayerBG")):
        codes |= {0x01080008 + i: (mosaic, 8, ""), 0x0110000C + i: (mosaic, 10, ""), 0x01100010 + i: (mosaic, 12, ""),
                  0x0110002E + i: (mosaic, 16, ""), 0x010C0026 + i: (mosaic, 10, "Packed"), 0x010C002A + i: (mosaic, 12, "Packed")}
    for i, mosaic in enumerate(("BayerBG", "BayerGB", "BayerGR", "BayerRG")):
        codes |= {0x010A0052 + 2 * i: (mosaic, 10, "p"), 0x010C0053 + 2 * i: (mosaic, 12, "p")}
    return {code: PixelFormat(f"{kind}{bits}{packing}", kind, bits, packing) for code, (kind, bits, packing) in codes.items()}


FORMATS = _formats()  # by PFNC code, as cameras send it


def to_frame(data: Bytes, form: PixelFormat, width: int, height: int, row_padding: int = 0) -> Frame:
    """A frame of a camera's bytes: uint8 ``[height, width, 1]``, or ``[height, width, 3]`` in RGB order of a colour format.

    data: uint8 ``[N]``, may be longer than the image. row_padding: bytes behind each row. The frame is a view of ``data`` where
    ``form.is_frame`` and rows have no padding, else a new array. Raises ValueError when ``data`` is too short.
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
    elif form.kind in _MOSAICS:
        values = np.asarray(cv2.cvtColor(np.ascontiguousarray(values.reshape(height, width)), _MOSAICS[form.kind]), np.uint8)
    return np.ascontiguousarray(values).reshape(height, width, -1)


def _rows(data: Bytes, form: PixelFormat, width: int, height: int, row_padding: int) -> Bytes:
    """``[height, bytes]``, or ``[1, bytes]`` where rows follow each other without padding."""
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
    """The high 8 bits of packed values: ``[rows, bytes]`` to ``[rows, pixels]``."""
    group = 5 if (form.packing, form.bits) == ("p", 10) else 3  # bytes of 4 px, or of 2
    count = -(-rows.shape[1] // group)
    whole = np.zeros((len(rows), count * group), np.uint8)
    whole[:, :rows.shape[1]] = rows
    b = [whole[:, i::group] for i in range(group)]
    if form.packing == "Packed":  # high bits of the first, low bits of both, high bits of the second
        high = [b[0], b[2]]
    elif form.bits == 10:
        high = [b[0] >> 2 | b[1] << 6, b[1] >> 4 | b[2] << 4, b[2] >> 6 | b[3] << 2, b[4]]
    else:
        high = [b[0] >> 4 | b[1] << 4, b[2]]
    return np.stack(high, axis=-1).reshape(len(rows), -1)[:, :pixels]

"""Chunk data: what a camera sends with each image, such as its own count of exposures, which reveals unsent frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge.cameras.frame_ids import RESTART_STEP
from edge.cameras.genicam.features import Features

SELECTED = ("FrameID", "Framecounter", "Timestamp", "ExposureTime", "EncoderValue")  # entries of ChunkSelector
ABSENT = 10  # frames in a row without a chunk, after which it is no longer looked for
FRAME_ID = ("ChunkFrameID", "ChunkFramecounter")


@dataclass(frozen=True)
class Chunks:
    """The chunk data of one frame. None: the camera does not send it."""

    frame_id: int | None = None  # as the camera counts its exposures
    timestamp: int | None = None  # ticks of the camera's clock
    exposure_us: float | None = None
    encoder: int | None = None  # signed, 32 bit


def set_chunks(features: Features, on: bool) -> bool:
    """Turn chunk data on or off. Returns whether the camera sends it now. Raises CameraError."""
    if not features.has("ChunkModeActive"):
        return False
    features.set("ChunkModeActive", on)
    if on and features.has("ChunkSelector") and features.has("ChunkEnable"):
        for entry in features.entries("ChunkSelector"):
            if entry in SELECTED:
                features.set("ChunkSelector", entry)
                features.set("ChunkEnable", True)
    return on


class ChunkReader:
    """Reads the chunks of complete frames."""

    def __init__(self, parser: Any, error: type[Exception]) -> None:
        """parser: an Aravis.ChunkParser. error: what the parser raises for a missing chunk."""
        self._parser, self._error = parser, error
        self._failed: Counter[str] = Counter()  # failed reads in a row, by name

    def read(self, buffer: Any) -> Chunks:
        """The chunks of an Aravis.Buffer."""
        if not buffer.has_chunks():
            return Chunks()
        ids = (self._get(self._parser.get_integer_value, buffer, name) for name in FRAME_ID)
        exposure = self._get(self._parser.get_float_value, buffer, "ChunkExposureTime")
        encoder = self._get(self._parser.get_integer_value, buffer, "ChunkEncoderValue")
        return Chunks(next((found for found in ids if found is not None), None),
                      self._get(self._parser.get_integer_value, buffer, "ChunkTimestamp"), exposure,
                      None if encoder is None else (encoder + (1 << 31)) % (1 << 32) - (1 << 31))

    def _get(self, get: Callable[[Any, str], Any], buffer: Any, name: str) -> Any:
        if self._failed[name] < ABSENT:
            try:
                found = get(buffer, name)
            except self._error:
                self._failed[name] += 1
                return None
            self._failed[name] = 0
            return found
        return None


class Exposures:
    """Converts frame ids that count sent frames into ids that count exposures.

    A camera's frame ids count the frames that it sends. If its chunks count exposures, then the exposures that it could
    not send become gaps in the ids. An incomplete frame has no chunks; it gets the same correction as the frame before
    it.
    """

    def __init__(self, lowest: int, highest: int) -> None:
        self._lowest, self._cycle = lowest, highest - lowest + 1
        self._unsent = 0
        self._last: tuple[int, int] | None = None  # frame id and exposure count of the last frame with chunks

    def id_of(self, frame_id: int, chunk: int | None) -> int:
        """The frame's id, plus the number of frames before it that were exposed but not sent."""
        if chunk is not None:
            if self._last is not None:
                half = self._cycle // 2
                sent = (frame_id - self._last[0] + half) % self._cycle - half
                unsent = chunk - self._last[1] - sent
                if abs(unsent) < RESTART_STEP:  # otherwise the chunk's count wrapped
                    self._unsent += unsent
            self._last = frame_id, chunk
        return self._lowest + (frame_id - self._lowest + self._unsent) % self._cycle

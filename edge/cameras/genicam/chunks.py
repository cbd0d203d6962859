"""What a camera says in each frame beside its image (chunk data), and what its own count of frames tells of those it never sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge.cameras.frame_ids import RESTART_STEP
from edge.cameras.genicam.features import Features

SELECTED = ("FrameID", "Framecounter", "Timestamp", "ExposureTime", "EncoderValue")  # entries of ChunkSelector
ABSENT = 10  # frames one after the other without a chunk: the camera has none such
FRAME_ID = ("ChunkFrameID", "ChunkFramecounter")


@dataclass(frozen=True)
class Chunks:
    """Of one frame. None: the camera does not say."""

    frame_id: int | None = None  # as the camera counts its exposures
    timestamp: int | None = None  # ticks of the camera's clock
    exposure_us: float | None = None
    encoder: int | None = None  # signed, 32 bit


def set_chunks(features: Features, on: bool) -> bool:
    """Let the camera send chunk data, or not. Returns whether it does. Raises CameraError."""
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
    """Reads the chunks of whole frames."""

    def __init__(self, parser: Any, error: type[Exception]) -> None:
        """parser: an Aravis.ChunkParser. error: what it raises for a chunk that is not there."""
        self._parser, self._error = parser, error
        self._failed: Counter[str] = Counter()  # reads one after the other, by name

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
    """Frame ids that count exposures. A camera counts what it sends; where its chunks count exposures, what it could not send is a gap.

    A frame that is not whole has no chunks, and goes on from the one before it.
    """

    def __init__(self, lowest: int, highest: int) -> None:
        self._lowest, self._cycle = lowest, highest - lowest + 1
        self._unsent = 0
        self._last: tuple[int, int] | None = None  # id, chunk

    def id_of(self, frame_id: int, chunk: int | None) -> int:
        """The frame's id, with the frames before it that were exposed and not sent."""
        if chunk is not None:
            if self._last is not None:
                half = self._cycle // 2
                sent = (frame_id - self._last[0] + half) % self._cycle - half
                unsent = chunk - self._last[1] - sent
                if abs(unsent) < RESTART_STEP:  # else the chunk's count wrapped
                    self._unsent += unsent
            self._last = frame_id, chunk
        return self._lowest + (frame_id - self._lowest + self._unsent) % self._cycle

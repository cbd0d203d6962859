"""Camera `toy`: a whole kind of camera in one file. It renders cloth, and every third frame has a dark spot."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Literal

from pydantic import Field

from edge.cameras.section import CameraSection
from edge.images.frames import Frame
from edge.part.frame import CameraFrame
from simulation.render.surface import Surface

SURFACE = Surface("woven", 7)  # the product that the demo's bundle was fitted on


class ToySection(CameraSection):
    """[camera] kind = "toy": rendered cloth, some with a dark spot"""

    key = "spot_px"
    kind: Literal["toy"]
    spot_px: int = Field(default=40, ge=1, le=200)  # width and height of the spot

    def make(self, folder: Path) -> ToyCamera:
        """The camera, not opened yet."""
        return ToyCamera(self.spot_px)

    @property
    def frames_name_triggers(self) -> bool:
        """Whether each frame says which trigger it belongs to."""
        return True


class ToyCamera:
    """Follows the protocol `edge.cameras.camera.Camera`."""

    def __init__(self, spot_px: int) -> None:
        self._spot_px = spot_px
        self._triggers: queue.SimpleQueue[tuple[int, int, int | None, float]] = queue.SimpleQueue()

    def open(self) -> None:
        """There is no device to open."""

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        self._triggers.put((trigger, part, encoder, at))

    def next(self, timeout: float) -> CameraFrame | None:
        try:
            trigger, part, encoder, at = self._triggers.get(timeout=timeout)
        except queue.Empty:
            return None
        image = toy_image(trigger, self._spot_px)
        return CameraFrame(trigger, part, trigger, at, image, f"toy {trigger}", encoder=encoder)

    def settle(self, camera: int) -> None:
        """Each frame says its trigger, so there is nothing to resynchronise."""

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """There is no device to close."""


def toy_image(trigger: int, spot_px: int) -> Frame:
    """The image for a trigger (counted from 1), uint8 ``[256, 256, 1]``."""
    image = SURFACE.part(100_000 + trigger).frame
    if trigger % 3 == 0:
        image[20:20 + spot_px, 20:20 + spot_px] = 10
    return image

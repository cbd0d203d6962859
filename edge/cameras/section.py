"""What every kind of camera declares: its section of the line file, and what the other modules need to know.

A kind is one class in a file of its own, and one line in `edge.cameras.kinds.CAMERAS`. The class derives from
`CameraSection`, or from `LiveSection` if the line or a sensor triggers the camera. The line file loads these classes,
so their files import numpy, OpenCV and SDKs inside methods only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from edge.base.finding import Finding
from edge.base.settings import Settings, without_password
from edge.cameras.camera import Camera, FoundCamera

Match = Literal["trigger", "frame-id", "encoder"]
CameraTrigger = Literal["software", "hardware", "off"]


class CameraSection(Settings):
    """[camera]: the keys that all kinds have. A kind adds ``kind: Literal["its-name"]``, its own keys, and `make`."""

    key: ClassVar[str]  # the key that says which camera it is, such as "serial"
    kind: str
    match: Match = "trigger"  # how frames are matched to parts; see edge.cameras.matching
    window_counts: int = Field(default=0, ge=0, lt=1 << 30)  # between the encoder counts of a trigger and its frame
    window_ms: float = Field(default=30, gt=0, le=10_000)  # longest time from a trigger to its exposure

    @model_validator(mode="after")
    def _window(self) -> Self:
        if (self.match == "encoder") != (self.window_counts > 0):
            raise ValueError('window_counts above 0 with match = "encoder", and only then')
        return self

    @abstractmethod
    def make(self, folder: Path) -> Camera:
        """The camera, not yet open. ``folder``: what relative paths start from. Raises CameraError."""

    @property
    def name(self) -> str:
        """The camera's name for messages, without any password."""
        return without_password(str(getattr(self, self.key)))

    @property
    def frames_name_triggers(self) -> bool:
        """Whether each frame says which trigger it belongs to, so that nothing needs matching."""
        return False

    @property
    def line_triggers(self) -> bool:
        """Whether the line triggers the camera."""
        return True

    @property
    def runs_free(self) -> bool:
        """Whether the camera takes frames at its own rate, without any trigger."""
        return False

    def endless(self) -> Self:
        """The same camera, but it repeats its images. For tests that take more frames than it has."""
        return self

    def freed(self) -> Self | None:
        """The same camera, but it runs free; None if it is not triggered anyway."""
        return None

    @property
    def no_frame_advice(self) -> str | None:
        """What to check when no frame came, if this kind has something better than the general advice."""
        return None

    def loss_advice(self, counters: Mapping[str, int]) -> str:
        """Why frames were lost, and what to change. ``counters``: those of the camera and its driver."""
        return "data was lost in transit; check the cable, and what else uses the bus or the network"

    @classmethod
    def discover(cls) -> list[FoundCamera]:
        """The cameras of this kind that the machine sees. Raises CameraError if it cannot search."""
        return []

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterable[Finding]:
        """What this machine has or lacks for this kind. ``root``: the root of its file system."""
        return ()


class LiveSection(CameraSection):
    """[camera]: a camera that the line or a sensor triggers, or that runs free."""

    # The line triggers it, a sensor does, or it runs free and the first frame after a trigger counts.
    trigger: CameraTrigger = "software"

    @model_validator(mode="before")
    @classmethod
    def _match_by_id(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("trigger") == "hardware":
            return {"match": "frame-id", **given}
        return given

    @model_validator(mode="after")
    def _who_triggers(self) -> Self:
        if self.trigger == "hardware" and self.match == "trigger":
            raise ValueError('match = "frame-id" or "encoder" with trigger = "hardware": '
                             "the line does not know which triggers the camera got")
        if self.trigger == "off" and self.match != "trigger":
            raise ValueError('match = "trigger" with trigger = "off"')
        return self

    @property
    def line_triggers(self) -> bool:
        """Whether the line triggers the camera."""
        return self.trigger == "software"

    @property
    def runs_free(self) -> bool:
        """Whether the camera takes frames at its own rate, without any trigger."""
        return self.trigger == "off"

    def freed(self) -> Self | None:
        """The same camera, but it runs free; None if it is not triggered anyway."""
        return None if self.runs_free else self.model_copy(update={"trigger": "off", "match": "trigger"})

"""What every kind of camera declares: its section of the line file, and what the rest of the line needs to know of it.

A kind is one class derived from `CameraSection` (or from `LiveSection`, if the line or a sensor triggers it), in a file of its own, and one
line in `edge.cameras.kinds.CAMERAS`. The line file loads all these classes, so their files import numpy, OpenCV and SDKs inside methods.
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
    """[camera]: what all kinds have. A kind adds ``kind: Literal["its-name"]``, its own keys, and `make`."""

    key: ClassVar[str]  # the option that says which camera it is, such as "serial"
    kind: str
    match: Match = "trigger"  # how the part of a frame is known
    window_counts: int = Field(default=0, ge=0, lt=1 << 30)  # encoder counts between a part's trigger and its frame, at most
    window_ms: float = Field(default=30, gt=0, le=10_000)  # from a trigger to its exposure, at most

    @model_validator(mode="after")
    def _window(self) -> Self:
        if (self.match == "encoder") != (self.window_counts > 0):
            raise ValueError('window_counts above 0 together with match = "encoder", and only then')
        return self

    @abstractmethod
    def make(self, folder: Path) -> Camera:
        """The camera, not opened yet. ``folder``: what relative paths start from. Raises CameraError."""

    @property
    def name(self) -> str:
        """The camera in words that may be shown to anyone."""
        return without_password(str(getattr(self, self.key)))

    @property
    def frames_name_triggers(self) -> bool:
        """Whether each frame says which trigger it is of, so that frames need not be matched to parts."""
        return False

    @property
    def line_triggers(self) -> bool:
        """Whether the camera takes a frame because the line triggers it."""
        return True

    @property
    def runs_free(self) -> bool:
        """Whether the camera takes frames at its own rate, without any trigger."""
        return False

    def endless(self) -> Self:
        """The same camera without an end, for tests that take more frames than it has."""
        return self

    def freed(self) -> Self | None:
        """The same camera running free; None if nothing triggers it as it is."""
        return None

    @property
    def no_frame_advice(self) -> str | None:
        """What to look at when no frame came, if this kind knows better than the general advice."""
        return None

    def loss_advice(self, counters: Mapping[str, int]) -> str:
        """Why frames were lost and what to change. ``counters``: of the camera and its driver."""
        return "the data got lost on the way; check the cable, and what else uses the bus or the network"

    @classmethod
    def discover(cls) -> list[FoundCamera]:
        """The cameras of this kind that the machine sees. Raises CameraError if it cannot look for them."""
        return []

    @classmethod
    def doctor(cls, root: Path = Path("/")) -> Iterable[Finding]:
        """What this machine has and lacks for this kind. ``root``: of its file system."""
        return ()


class LiveSection(CameraSection):
    """[camera]: a camera that the line or a sensor triggers, or that runs free."""

    trigger: CameraTrigger = "software"  # by the line; by a sensor; runs free, and the first frame after a trigger is taken

    @model_validator(mode="before")
    @classmethod
    def _match_by_id(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("trigger") == "hardware":
            return {"match": "frame-id", **given}
        return given

    @model_validator(mode="after")
    def _who_triggers(self) -> Self:
        if self.trigger == "hardware" and self.match == "trigger":
            raise ValueError('match = "frame-id" or "encoder" with trigger = "hardware": the camera does not know the line\'s triggers')
        if self.trigger == "off" and self.match != "trigger":
            raise ValueError('match = "trigger" with trigger = "off"')
        return self

    @property
    def line_triggers(self) -> bool:
        """Whether the camera takes a frame because the line triggers it."""
        return self.trigger == "software"

    @property
    def runs_free(self) -> bool:
        """Whether the camera takes frames at its own rate, without any trigger."""
        return self.trigger == "off"

    def freed(self) -> Self | None:
        """The same camera running free; None if nothing triggers it as it is."""
        return None if self.runs_free else self.model_copy(update={"trigger": "off", "match": "trigger"})

"""Camera `folder`: plays the images of a folder, one per trigger, in order of their paths."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typing_extensions import Self

from edge.base.errors import CameraError, InputError
from edge.cameras.section import CameraSection
from edge.part.frame import CameraFrame
from edge.part.verdict import Cause

if TYPE_CHECKING:
    from edge.images.frames import Frame


class FolderSection(CameraSection):
    """[camera] kind = "folder": the images of a folder"""

    key = "path"
    kind: Literal["folder"]
    path: str
    loop: bool = False
    preload: bool = False  # read all images before the line starts, and keep them in memory

    def make(self, folder: Path) -> FolderCamera:
        """The camera, not yet open."""
        return FolderCamera(folder / self.path, self.loop, self.preload, self.frames_name_triggers)

    @property
    def frames_name_triggers(self) -> bool:
        """Whether each frame says which trigger it belongs to."""
        return self.match == "trigger"

    def endless(self) -> Self:
        """The same camera, but it repeats its images."""
        return self.model_copy(update={"loop": True})

    def loss_advice(self, counters: Mapping[str, int]) -> str:
        """Why frames were lost."""
        return "the images of the folder cannot be read"


class FolderCamera:
    """A camera that the line triggers, and whose images are files."""

    def __init__(self, folder: Path, loop: bool, preload: bool = False, name_triggers: bool = True) -> None:
        """loop: after the last image, start again at the first. preload: keep all images in memory.

        name_triggers: False for frames that only have an id, a time and an encoder count, as if a sensor had triggered
        them.
        """
        self._folder, self._loop, self._preload, self._name_triggers = folder, loop, preload, name_triggers
        self._images: dict[Path, Frame] = {}
        self._files: list[tuple[Path, str]] = []  # each with its name in the folder
        self._triggers: queue.SimpleQueue[tuple[int, int, int | None, float]] = queue.SimpleQueue()
        self._frames = 0

    def open(self) -> None:
        from edge.images.files import list_images

        try:
            self._files = [(path, path.relative_to(self._folder).as_posix()) for path in list_images(self._folder)]
            if self._preload:
                self._images = {path: self._read(path) for path, _ in self._files}
        except InputError as error:
            raise CameraError(f"the folder camera cannot start: {error}",
                              next="Fix `path` under [camera] in the line file.") from error

    def expose(self, trigger: int, part: int, encoder: int | None, at: float) -> None:
        self._triggers.put((trigger, part, encoder, at))

    def next(self, timeout: float) -> CameraFrame | None:
        try:
            trigger, part, encoder, at = self._triggers.get(timeout=timeout)
        except queue.Empty:
            return None
        if not self._name_triggers:
            trigger = part = 0
        number = self._frames
        self._frames += 1
        if not self._loop and number >= len(self._files):
            return CameraFrame(trigger, part, number, at, None, encoder=encoder, cause=Cause.NO_FRAME,
                               text=f"the camera's folder {self._folder} ran dry after {len(self._files)} images; "
                                    "add images and restart the line, or set `loop = true`")
        path, source = self._files[number % len(self._files)]
        try:
            return CameraFrame(trigger, part, number, at, self._image(path), source, encoder=encoder)
        except Exception as error:  # one bad file must not stop the line
            cause = Cause.IMAGE if path.exists() else Cause.CAMERA
            return CameraFrame(trigger, part, number, at, None, source, encoder=encoder, cause=cause, text=str(error))

    def _image(self, path: Path) -> Frame:
        return self._images[path] if self._preload else self._read(path)

    @staticmethod
    def _read(path: Path) -> Frame:
        from edge.images.files import read_image

        return read_image(path)

    def settle(self, camera: int) -> None:
        """Nothing to do: each frame is taken for one trigger."""

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._files = []
        self._images = {}

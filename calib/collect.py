"""Calibration sets: frames that cover what the camera sees, without near-duplicates, the most unusual ones first.

A defect in a calibration set does harm: it widens the ranges of INT8 and raises thresholds. Nothing here knows what a
defect is, but `calib.unlike` finds what occurs in one frame only, and a person then decides.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calib.page import write_page
from calib.unlike import Embedding, k_centres, stand_out, unlike_cells, unlikeness
from edge.base.errors import CameraError, InputError
from edge.base.files import write_text_safely
from edge.cameras.kinds import make_camera
from edge.images.files import good_folder, list_images, read_image, write_image
from edge.images.frames import Frame, frame_hash
from edge.line_file import read_line_file
from edge.part.verdict import Cause

FORMAT = 1
LOOKED_AT = 5  # frames taken for each frame that is wanted
# Of the usual distance between two frames. The same part seen twice, with a good sensor's noise, stays below it;
# different
# parts are at 0.27 or more.
NEAR_DUPLICATE = 0.2
FRAME_TIMEOUT = 10.0  # s
MOST_FAILED = 5  # frames that the camera may lose

Seen = tuple[Frame, str, str, float]  # frame, source, camera, time at which it was taken (s since the epoch)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Collected:
    """A frame of a calibration set."""

    file: str  # in good/
    sha256: str  # of its pixels
    source: str  # file name or frame number
    camera: str
    time: str  # when it was taken, ISO 8601 with time zone
    unlike: float  # distance from the other frames; 1: as usual
    stands_out: bool
    place: tuple[float, float]  # x and y of its most unusual place, 0..1 of the frame


@dataclass(frozen=True)
class CalibrationSet:
    """A calibration set: its folder, its source, and its frames, the most unusual first."""

    folder: Path
    source: str
    looked_at: int
    copies: int  # frames dropped because another has the same pixels
    near_duplicates: int  # frames dropped because another is nearly the same
    reviewed: bool  # whether a person has decided which frames stay
    frames: list[Collected]

    @property
    def images(self) -> Path:
        """The folder of the frames."""
        return self.folder / "good"


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def folder_frames(data: Path, most: int) -> tuple[int, Iterator[Seen]]:
    """At most ``most`` good images of a folder, spread evenly over all of them: their number, and the images."""
    folder = good_folder(data)
    paths = list_images(folder)
    paths = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int))]
    return len(paths), ((read_image(path), path.relative_to(folder).as_posix(), str(folder), path.stat().st_mtime)
                        for path in paths)


def line_frames(line: Path, most: int) -> tuple[int, Iterator[Seen]]:
    """``most`` frames of a line's camera, triggered without the PLC. Raises CameraError if the camera fails."""
    file = read_line_file(line)
    camera = make_camera(file.camera, line.parent)
    camera.open()

    def frames() -> Iterator[Seen]:
        failed = 0
        for number in range(most):
            if number % len(file.camera) == 0:
                camera.expose(number, number, None, time.monotonic())
            taken = camera.next(FRAME_TIMEOUT)
            if taken is not None and taken.cause is Cause.NO_FRAME:
                return
            if taken is not None and taken.image is not None and taken.complete:
                section = file.camera[taken.camera]
                name = f"{file.line.name}: {section.kind}" + (f" {taken.camera + 1}" if len(file.camera) > 1 else "")
                yield taken.image, taken.source or str(taken.frame_id), name, time.time()
                continue
            failed += 1
            if failed > MOST_FAILED:
                raise CameraError(f"the camera failed {failed} times", got="no frame in time" if taken is None
                                  else taken.text, expected="a complete frame for each trigger",
                                  next="Check that no other program uses the camera.")

    return most, frames()


def collect(source: Path, out: Path, wanted: int, progress: Progress = lambda *_: None) -> CalibrationSet:
    """Choose ``wanted`` frames from a folder or from a line's camera, and write the set ``out``: frames, manifest.json,
    index.html.

    Raises InputError for a source without usable frames or an existing ``out``, CameraError if the camera fails.
    """
    if wanted < 2:
        raise InputError("a calibration set needs at least two frames", got=wanted, expected="2 or more, better 100")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already", expected="a folder that does not exist yet",
                         next="Give another --out, or remove it.")
    from_line = source.suffix == ".toml" and source.is_file()
    total, frames = (line_frames if from_line else folder_frames)(source, LOOKED_AT * wanted)
    temporary = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.part")
    try:
        (temporary / "seen").mkdir(parents=True)
        (temporary / "good").mkdir()
    except OSError as error:
        raise InputError(f"cannot write beside {out}", got=error.strerror, expected="a writable folder") from error
    try:
        made = _choose(total, frames, source, temporary, wanted, progress)
        if out.is_dir():
            out.rmdir()  # empty
        temporary.rename(out.resolve())
    except OSError as error:
        raise InputError(f"cannot collect into {out}", got=f"{error.strerror}: {error.filename}",
                         expected="a readable source, and room on the disk") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return replace(made, folder=out)


def _choose(total: int, frames: Iterator[Seen], source: Path, folder: Path, wanted: int,
            progress: Progress) -> CalibrationSet:
    embedding = Embedding()
    seen: dict[str, tuple[str, str, float]] = {}
    vectors, looked_at = [], 0
    try:
        for frame, name, camera, taken in frames:
            looked_at += 1
            sha256 = frame_hash(frame)
            if sha256 not in seen:
                seen[sha256] = (name, camera, taken)
                vectors.append(embedding(frame).astype(np.float16))  # a thousand frames in 130 MB
                write_image(folder / "seen" / f"{sha256}.png", frame)
            progress("looking at frames", looked_at, total)
    finally:
        embedding.close()
    features = np.stack(vectors).astype(np.float32) if vectors else np.empty((0, 4, 4, 1), np.float32)
    every = k_centres(features, len(seen), NEAR_DUPLICATE) if len(seen) > 1 else list(range(len(seen)))
    if len(every) < 2:
        raise InputError(f"too few different frames from {source}", got=f"{len(every)} of {looked_at}",
                         expected="at least 2, better 100")
    chosen = every[:wanted]
    cells = unlike_cells(features, lambda done, total: progress("comparing frames", done, total))
    values = unlikeness(cells)
    loud, usual, names = stand_out(values), max(float(np.median(values)), 1e-6), list(seen)
    collected = []
    for number, index in enumerate(sorted(chosen, key=lambda i: -values[i]), 1):
        name, camera, taken = seen[names[index]]
        row, column = np.unravel_index(int(cells[index].argmax()), cells[index].shape)
        place = ((float(column) + 0.5) / cells.shape[2], (float(row) + 0.5) / cells.shape[1])
        collected.append(Collected(f"{number:04d}.png", names[index], name, camera, _stamp(taken),
                                   round(float(values[index]) / usual, 3), bool(loud[index]), place))
        (folder / "seen" / f"{names[index]}.png").rename(folder / "good" / f"{number:04d}.png")
    shutil.rmtree(folder / "seen")
    made = CalibrationSet(folder, str(source), looked_at, looked_at - len(seen), len(seen) - len(every), False,
                          collected)
    _write(made)
    return made


def review(folder: Path, leave_out: list[int]) -> CalibrationSet:
    """Take the frames of these numbers out of a set, into ``left-out/``, and note that a person has looked. Raises
    InputError.

    What a stop has left half done is done by the same command.
    """
    old = _read_manifest(folder)
    numbers = {int(Path(frame.file).stem): frame for frame in old.frames}
    if unknown := sorted(set(leave_out) - set(numbers)):
        raise InputError(f"{folder} has no frame {unknown[0]}", got=", ".join(map(str, unknown)),
                         expected="numbers shown on its page")
    if len(numbers) - len(set(leave_out)) < 2:
        raise InputError("a calibration set needs at least two frames",
                         got=f"{len(set(leave_out))} of {len(numbers)} to leave out")
    gone = {numbers[number].file for number in leave_out}
    kept = replace(old, reviewed=True, frames=[frame for frame in old.frames if frame.file not in gone])
    try:
        (folder / "left-out").mkdir(exist_ok=True)
        for file in gone:
            if not (folder / "left-out" / file).exists():
                (folder / "good" / file).rename(folder / "left-out" / file)
        _write(kept)
    except OSError as error:
        raise InputError(f"cannot write {folder}", got=f"{error.strerror}: {error.filename}",
                         expected="a writable folder with room", next="Run the same command again.") from error
    return kept


def _write(made: CalibrationSet) -> None:
    manifest: dict[str, Any] = {"format": FORMAT, **asdict(made)}
    del manifest["folder"]
    write_page(made.folder / "index.html", made.images, made.source, manifest)
    write_text_safely(made.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _read_manifest(folder: Path) -> CalibrationSet:
    try:
        data = json.loads((folder / "manifest.json").read_text())
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        frames = [Collected(**{**frame, "place": tuple(frame["place"])}) for frame in data.pop("frames")]
        return CalibrationSet(folder=folder, frames=frames, **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder} is not a calibration set", got=str(error),
                         expected="a folder that `lineside collect` wrote",
                         next="Collect it: lineside collect --from LINE.toml|DIR --out SET") from error


def read_set(folder: Path) -> CalibrationSet:
    """Read a calibration set and check its frames' hashes. Raises InputError, naming a frame that was changed."""
    made = _read_manifest(folder)
    for frame in made.frames:
        if frame_hash(read_image(made.images / frame.file)) != frame.sha256:
            raise InputError(f"{made.images / frame.file} is not the collected frame", got="other pixels",
                             next="Collect the set again.")
    return made

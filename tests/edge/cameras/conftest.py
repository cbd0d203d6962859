"""A line with the demo's bundle, so that a test of a camera needs no fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.images.files import write_image
from simulation.render.surface import Surface
from tests.rig import Rig

BUNDLE = Path(__file__).parents[3] / "simulation" / "demo_bundle"


@pytest.fixture(scope="session")
def cloth_parts(tmp_path_factory) -> Path:
    """A folder with four good and four defective parts of the demo's product, 256 px, grey."""
    surface, folder = Surface("woven", 7), tmp_path_factory.mktemp("parts")
    for number in range(8):
        defect = surface.defects[number // 2] if number % 2 else None
        write_image(folder / f"{number}.png", surface.part(100_000 + number, defect).frame)
    return folder


@pytest.fixture
def line(tmp_path, cloth_parts) -> Iterator[Rig]:
    """A line that plays these parts; a test writes its own [camera]. Its processes end with the test."""
    rig = Rig(tmp_path, BUNDLE, camera=cloth_parts, travel=1000)
    yield rig
    for process in rig.processes:
        process.kill()
        process.wait()

"""Compiled stand-ins for a PLC, its cable and modem lines, and images for the demo's bundle."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import pytest

from simulation.render.surface import Surface

MOCKS = Path(__file__).parents[2] / "mocks"


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    """Nine images of the demo's product; every third one has a dark spot."""
    folder, surface = tmp_path_factory.mktemp("frames"), Surface("woven", 7)
    for number in range(1, 10):
        image = surface.part(100_000 + number).frame
        if number % 3 == 0:
            image[20:80, 20:80] = 10
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


@pytest.fixture(scope="session")
def modem_lines(tmp_path_factory) -> Path:
    """A library that gives pseudo terminals modem lines when it is preloaded."""
    library = tmp_path_factory.mktemp("lines") / "modem_lines.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", MOCKS / "modem_lines.c", "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Path:
    """The folder with the programs ``paced_wire`` and ``modbus_plc``."""
    folder = tmp_path_factory.mktemp("modbus")
    subprocess.run(["gcc", "-O1", MOCKS / "paced_wire.c", "-o", folder / "paced_wire"], check=True)
    subprocess.run(["gcc", "-O1", "-I/usr/include/modbus", MOCKS / "modbus_plc.c", "-o", folder / "modbus_plc",
                    "-lmodbus"], check=True)
    return folder

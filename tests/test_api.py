"""The public API: `import lineside` costs nothing, its names are there, and what docs/api.md shows works."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lineside
from edge.bundle.bundle import load_bundle
from edge.cameras.custom.section import CustomSection
from edge.images.files import write_image
from edge.inspection.inspector import Inspector
from simulation.render.surface import Surface

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "simulation" / "demo_bundle"
PAGE = (ROOT / "docs" / "api.md").read_text()
HEAVY = ("torch", "numpy", "cv2", "pydantic", "openvino", "onnxruntime", "typer")


def run(*words: str) -> str:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_import_loads_nothing_heavy():
    program = f"import sys, lineside; print([name for name in {HEAVY} if name in sys.modules])"
    assert run("-c", program).strip() == "[]"


@pytest.mark.parametrize("name", lineside.__all__)
def test_each_public_name_is_there_and_listed(name):
    assert getattr(lineside, name) is not None and name in dir(lineside)


def test_public_names_are_what_the_modules_define():
    assert lineside.load_bundle is load_bundle and lineside.Inspector is Inspector
    assert issubclass(lineside.CameraError, lineside.LinesideError)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Inspektor'"):
        lineside.Inspektor  # noqa: B018
    with pytest.raises(ImportError, match="Inspektor"):
        exec("from lineside import Inspektor")


def test_the_version_is_printed():
    assert run("-m", "lineside", "--version") == f"lineside {lineside.__version__}\n" == "lineside 0.2.0\n"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_bundle_is_loaded_from_a_text_or_a_path(kind):
    assert lineside.load_bundle(kind(BUNDLE)).folder == BUNDLE


# docs/api.md

EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_page_shows_an_inspection_loop_of_about_ten_lines_and_a_driver():
    loop, driver = EXAMPLES
    assert len([line for line in loop.splitlines() if line]) <= 12 and "class " in driver


def test_the_page_names_all_of_the_api():
    assert [name for name in lineside.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []


def test_the_inspection_loop_finds_the_defective_part(tmp_path, capsys):
    surface = Surface("woven", 7)  # what the demo's bundle was fitted on
    for index in (100_001, 100_002):
        write_image(tmp_path / f"{index}.png", surface.part(index).frame)
    write_image(tmp_path / "defective.png", surface.part(100_003, "missing_thread").frame)
    constants = f"BUNDLE, IMAGES = Path({str(BUNDLE)!r}), Path({str(tmp_path)!r})"
    text, replaced = re.subn(r"^BUNDLE, IMAGES = .*$", constants, EXAMPLES[0], flags=re.M)
    assert replaced == 1
    exec(text, {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and printed[0].startswith("defective.png")


def test_the_driver_gives_a_frame_for_each_trigger_as_a_camera_of_kind_custom(tmp_path):
    name = re.search(r"^class (\w+)", EXAMPLES[1], re.M).group(1)
    (tmp_path / "driver.py").write_text(EXAMPLES[1])
    camera = CustomSection(kind="custom", driver=f"driver.py:{name}", window_ms=10_000).make(tmp_path)
    camera.open()
    try:
        for trigger in (1, 2, 3):
            camera.expose(trigger, trigger, None, time.monotonic())
            frame = camera.next(20.0)
            assert frame is not None and frame.image is not None and frame.complete and frame.frame_id == trigger
    finally:
        camera.close()
    assert camera.counters()["frames"] == 3

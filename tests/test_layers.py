"""The import rule of the house, and what `import edge` may bring in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("edge", "calib", "detectors", "export")
MAY_IMPORT = {"edge": set(), "calib": {"edge"}, "detectors": {"edge.prepare"}, "export": {"edge", "calib", "detectors"}}
HEAVY = {"torch", "onnx", "onnxscript", "openvino", "tensorrt", "pycuda", "cv2", "numpy", "pydantic", "matplotlib", "sklearn", "pymodbus"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    typing_only = {id(child) for node in tree.body if isinstance(node, ast.If) for child in ast.walk(node)}
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    for path in files(room):
        for name in imports(path):
            top = name.split(".")[0]
            if top not in ROOMS or top == room:
                continue
            allowed = MAY_IMPORT[room] | ({"edge.extras", "edge.console"} if path.name == "cli.py" else set())
            assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path.relative_to(ROOT)} imports {name}"


def test_simulation_is_imported_by_nothing_else_in_edge():
    for path in files("edge"):
        if "simulation" not in path.parts:
            assert not [name for name in imports(path) if name.startswith("edge.simulation")], path


def test_the_simulated_plc_has_a_decoder_of_its_own():
    for path in (ROOT / "edge" / "simulation").glob("*.py"):
        if path.name in ("virtual.py", "virtual_control.py"):  # they drive line control's own rules, without any PLC
            continue
        assert not [name for name in imports(path) if name.startswith(("edge.plc", "edge.control"))], path


def test_rendered_defects_share_nothing_with_the_artificial_ones():
    for path in (ROOT / "edge" / "simulation").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("detectors")], path


@pytest.mark.parametrize("path", [ROOT / "lineside.py", *[p for room in ROOMS for p in files(room) if p.name == "cli.py"]], ids=str)
def test_command_modules_import_nothing_heavy_at_their_top(path):
    assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout.split())


def test_the_line_starts_without_training_packages():
    modules = loaded_by("import edge, edge.runtime, edge.cli, edge.simulation.demo")
    assert not modules & {"torch", "onnx", "onnxscript", "matplotlib", "sklearn", "scipy"}


def test_line_control_loads_nothing_heavy():
    """It locks all its memory, and has to be back within two seconds."""
    assert not loaded_by("import edge.control.process, edge.plc.frames, edge.plc.lines, edge.plc.modbus") & HEAVY


def test_help_loads_nothing_heavy():
    assert not loaded_by("import lineside") & HEAVY

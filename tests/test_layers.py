"""Which folder may import which, the order of the folders inside `edge/`, and what starting the line loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("edge", "simulation", "calib", "detectors", "export")
MAY_IMPORT = {
    "edge": set(),
    "simulation": {"edge"},
    "calib": {"edge"},
    "detectors": {"edge.base", "edge.images"},
    "export": {"edge", "calib", "detectors", "simulation.render"},
}
# A part walks through edge/ in this order. A module imports from folders above its own, and from its own.
ORDER = (
    "base", "images", "part", "engines", "bundle", "inspection", "cameras", "plc", "line_control", "line_file",
    "record", "run", "tools", "cli",
)
OLD_PATHS = {"edge.errors"}  # until 0.3
HEAVY = {
    "torch", "onnx", "onnxscript", "openvino", "tensorrt", "pycuda", "cv2", "numpy", "pydantic", "matplotlib",
    "sklearn", "pymodbus",
}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports, wherever in it; without those that only type checkers see."""
    tree = ast.parse(path.read_text())
    typing_only = {id(child) for node in tree.body if isinstance(node, ast.If) for child in ast.walk(node)}
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            full = [f"{module}.{alias.name}" for alias in node.names]
            names.update(name if is_module(name) else module for name in full)
    return names


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_below(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + ".")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_they_may(folder):
    for path in files(folder):
        allowed = MAY_IMPORT[folder] | ({"edge.base"} if path.name == "cli.py" else set())
        for name in imports(path):
            if name.split(".")[0] in FOLDERS and not is_below(name, folder):
                assert any(is_below(name, other) for other in allowed), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", files("edge"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_part_walks_through_edge_and_never_turns_back(path):
    own = name_of(path).split(".")
    if len(own) < 2 or name_of(path) in OLD_PATHS:
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "edge" and len(parts) > 1:
            assert ORDER.index(parts[1]) <= ORDER.index(own[1]), (
                f"{path.relative_to(ROOT)} imports {name}, which comes after it")


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names that import one another in a circle, or none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name):], name]
        if name in done:
            return []
        found = next((c for other in sorted(graph.get(name, ())) if (c := visit(other, [*way, name]))), [])
        done.add(name)
        return found

    return next((c for name in sorted(graph) if (c := visit(name, []))), [])


def edges() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in files(folder):
            for name in imports(path):
                if name.split(".")[0] in FOLDERS and name != name_of(path):
                    yield name_of(path), name


def test_no_files_import_one_another_in_a_circle():
    graph: dict[str, set[str]] = {}
    for one, other in edges():
        graph.setdefault(one, set()).add(other)
    assert not circle(graph)


def test_no_folders_import_one_another_in_a_circle():
    graph: dict[str, set[str]] = {}
    for one, other in edges():
        here, there = (str(Path(ROOT, *name.split(".")[:-1]).relative_to(ROOT)) for name in (one, other))
        if (ROOT / one.replace(".", "/")).is_dir():
            here = one.replace(".", "/")
        if (ROOT / other.replace(".", "/")).is_dir():
            there = other.replace(".", "/")
        if here != there and not here.startswith(there + "/") and not there.startswith(here + "/"):
            graph.setdefault(here, set()).add(there)
    assert not circle(graph)


def test_no_file_has_two_subjects():
    """A file of more than 400 lines should be split."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed.stdout.split()
    assert not {name: count for name in tracked if (count := len((ROOT / name).read_text().splitlines())) > 400}


def test_the_simulated_plc_has_a_decoder_of_its_own():
    for path in files("simulation/plc"):
        shared = ("edge.plc", "edge.line_control", "edge.part")
        assert not [name for name in imports(path) if name.startswith(shared)], path


def test_rendered_defects_share_nothing_with_the_artificial_ones():
    for path in files("simulation"):
        assert not [name for name in imports(path) if name.startswith("detectors")], path


COMMANDS = [*(ROOT / "lineside").glob("*.py"), *(p for folder in FOLDERS for p in files(folder) if p.name == "cli.py")]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_modules_import_nothing_heavy_at_their_top(path):
    assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_line_starts_without_training_packages():
    modules = loaded_by("import edge, edge.run.runtime, edge.cli, simulation.demo")
    assert not modules & {"torch", "onnx", "onnxscript", "matplotlib", "sklearn", "scipy"}


def test_line_control_loads_nothing_heavy():
    """It locks all its memory, and has to be back within two seconds."""
    links = "edge.plc.frames.link, edge.plc.lines.link, edge.plc.modbus.link"
    assert not loaded_by(f"import edge.line_control.process, {links}") & HEAVY


def test_the_supervisor_and_the_line_file_load_no_arrays():
    assert not loaded_by("import edge.line_file, edge.run.supervisor") & {"numpy", "cv2", "openvino", "gi"}


def test_help_loads_nothing_heavy():
    assert not loaded_by("import lineside") & HEAVY

#!/usr/bin/env python3
"""Each TensorRT, PyCUDA and CUDA driver call in the sources, beside the versions that have it. Exit code 1 where a
supported one lacks it.

TensorRT: NVIDIA's own Python bindings of each version, loaded over empty libraries. PyCUDA: the module that is
installed. Driver calls: the declarations in each version's cuda.h. What a name in the sources stands for is the table
below.

    tests/tensorrt_api.py [--json]
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GPU = Path(sys.prefix) / "gpu"
SOURCES = ("edge/engines/gpu.py", "edge/engines/tensorrt.py", "edge/engines/cuda_graphs.py", "export/tensorrt.py",
           "tests/export/test_gpu.py")
TENSORRT = {"trt": "", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
            "config": "IBuilderConfig", "profile": "IOptimizationProfile", "tensor": "ITensor", "cache": "ITimingCache",
            "_runtime": "Runtime", "_engine": "ICudaEngine", "context": "IExecutionContext"}
RETURNED = {"OnnxParser.get_error": "ParserError", "IBuilderConfig.get_timing_cache": "ITimingCache"}
PYCUDA = {"cuda": "", "_stream": "Stream", "stream": "Stream", "_done": "Event", "_context": "Context",
          "allocation": "DeviceAllocation"}
LIST = """
import json, sys
import tensorrt_bindings as trt
def members(thing, depth=0):
    found = {}
    for name in dir(thing):
        if not name.startswith("_"):
            value = getattr(thing, name, None)
            found[name] = members(value, depth + 1) if isinstance(value, type) and depth < 2 else None
    return found
print(json.dumps({"__version__": None, **members(trt)}))
"""
ASK_PYCUDA = """
import json, sys
import pycuda, pycuda.driver as cuda
def has(name):
    thing = cuda
    for part in name.split("."):
        thing = getattr(thing, part, None)
    return thing is not None
print(json.dumps([pycuda.VERSION_TEXT, {name: has(name) for name in sys.argv[1:]}]))
"""


def calls(tree: ast.AST) -> tuple[set[str], set[str], set[str]]:
    """Dotted names of TensorRT's, PyCUDA's and the driver's in a source."""
    tensorrt, pycuda, driver = set(), set(), set()

    def resolve(node: ast.expr) -> tuple[str, str] | None:
        """Which library a value belongs to, and its class or dotted name there."""
        if isinstance(node, ast.Call):
            found = resolve(node.func)
            return (found[0], RETURNED[found[1]]) if found and found[1] in RETURNED else None
        last = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        owner = node.value if isinstance(node, ast.Attribute) else None
        if owner is None or (isinstance(owner, ast.Name) and owner.id in ("self", "owner")):
            for library, names in (("tensorrt", TENSORRT), ("pycuda", PYCUDA)):
                if last in names:
                    return library, names[last]
            return None
        above = resolve(owner)
        return None if above is None else (above[0], f"{above[1]}.{last}".lstrip("."))

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found = resolve(node)
            if found and found[1] and "__version__." not in found[1] and not found[1].endswith("__init__"):
                (tensorrt if found[0] == "tensorrt" else pycuda).add(found[1])
            if re.fullmatch(r"cu[A-Z]\w+", node.attr) and isinstance(node.value, ast.Call):
                driver.add(node.attr)
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                found = resolve(base)
                if found and found[0] == "tensorrt":
                    tensorrt |= {f"{found[1]}.{child.name}" for child in node.body
                                 if isinstance(child, ast.FunctionDef) and not child.name.startswith("_")}
    return tensorrt, pycuda, driver


def bindings() -> dict[str, dict]:
    """By version, the names in NVIDIA's bindings."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            for major in (10, 11):
                subprocess.run(["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,lib{name}.so.{major}",
                                ROOT / "tests/mocks/nvinfer.c", "-o", f"{folder}/lib{name}.so.{major}"], check=True)
        for path in sorted(GPU.glob("tensorrt-*"), key=lambda path: [int(part) for part in path.name[9:].split(".")]):
            done = subprocess.run([sys.executable, "-W", "ignore", "-c", LIST], capture_output=True, text=True,
                                  check=True, env={**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": str(path)})
            found[f"TensorRT {path.name[9:]}"] = json.loads(done.stdout)
    return found


def has(names: dict, dotted: str) -> bool:
    """Whether a dotted name is in a tree of names."""
    for part in dotted.split("."):
        if not isinstance(names, dict) or part not in names:
            return False
        names = names[part]
    return True


def table() -> dict[str, dict[str, bool]]:
    """By call, the versions and whether each has it."""
    tensorrt: set[str] = set()
    pycuda: set[str] = set()
    driver: set[str] = set()
    for source in SOURCES:
        for collected, found in zip((tensorrt, pycuda, driver), calls(ast.parse((ROOT / source).read_text())),
                                    strict=True):
            collected |= found
    versions = bindings()
    rows = {f"tensorrt {name}": {version: has(names, name) for version, names in versions.items()}
            for name in sorted(tensorrt)}
    done = subprocess.run([sys.executable, "-c", ASK_PYCUDA, *sorted(pycuda)], capture_output=True, text=True,
                          env={**os.environ, "LD_LIBRARY_PATH": os.environ.get("MOCK_DRIVER", "")})
    if done.returncode:
        raise SystemExit(f"PyCUDA cannot be loaded: {done.stderr}")
    version, found = json.loads(done.stdout)
    rows |= {f"pycuda.driver {name}": {f"PyCUDA {version}": there} for name, there in found.items()}
    headers = {path.name: next(path.rglob("cuda.h")).read_text() for path in sorted(GPU.glob("cuda-*"))}
    for name in sorted(driver):
        called = re.compile(rf"\b{re.escape(name.removesuffix('_v2'))}(_v2)?\b")
        rows[f"driver {name}"] = {f"CUDA {path[5:]}": bool(called.search(text)) for path, text in headers.items()}
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = table()
    lacking = {name: [version for version, there in versions.items() if not there] for name, versions in rows.items()}
    if arguments.json:
        print(json.dumps(rows))
    else:
        for name, versions in rows.items():
            print(f"{name:58} " + ", ".join(version if there else f"NOT IN {version}" for version,
                                            there in versions.items()))
        print(f"{len(rows)} calls; {sum(map(bool, lacking.values()))} that a supported version lacks")
    return 1 if any(lacking.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Mocks of what a machine without a GPU lacks, compiled when tests first need them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ["-shared", "-fPIC", "-O1", "-w"]


def build_driver(folder: Path) -> Path:
    """Compile the driver mock as ``libcuda.so.1`` in ``folder``. Functions that PyCUDA links to and the mock lacks
    fail.
    """
    spec = find_spec("pycuda")
    assert spec is not None and spec.submodule_search_locations
    extension = next(Path(spec.submodule_search_locations[0]).glob("_driver*.so"))
    symbols = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True,
                             check=True).stdout.split()
    source = (HERE / "cuda_driver.c").read_text()
    missing = [name for name in symbols if name.startswith("cu") and f" {name}(" not in source]
    (folder / "driver.c").write_text(source + "".join(f"R {name}(void) {{ ENTER; return NOT_SUPPORTED; }}\n"
                                                      for name in missing))
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", *FLAGS, "-Wl,-soname,libcuda.so.1", folder / "driver.c", "-o", library, "-lpthread"],
                   check=True)
    return library


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process in which `tensorrt` and the driver are the mocks, with a cache of plans in
    ``folder``.
    """
    root = str(HERE.parents[1])
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join([str(HERE), root]),
            "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", **more}


def run_python(folder: Path, script: Path, *arguments: object, timeout: float = 120,
               **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script on the mocks."""
    return subprocess.run([sys.executable, "-X", "faulthandler", script, *map(str, arguments)], capture_output=True,
                          text=True, timeout=timeout, env=environment(folder, **more))


class Driver:
    """The driver mock's own functions, for a process that uses the mock."""

    LIVE = ("device blocks", "host blocks", "streams", "events", "graphs", "contexts")

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.mock_traced.restype = ctypes.c_char_p
        self._library.mock_failed.restype = ctypes.c_char_p
        self._library.mock_live.restype = ctypes.c_long

    def live(self) -> dict[str, int]:
        """What is allocated."""
        return {name: self._library.mock_live(index) for index, name in enumerate(self.LIVE)
                if self._library.mock_live(index)}

    def fail(self, name: str = "", nth: int = 0, code: int = 0, sticky: bool = False) -> None:
        """Let the nth call of that name (or of any) fail from now on; without arguments: none."""
        self._library.mock_fail(name.encode(), nth, code, int(sticky))

    def times(self, copy_in: float, execute: float, copy_out: float) -> None:
        """How long each kind of work takes, in ms."""
        self._library.mock_times(*(int(1000 * ms) for ms in (copy_in, execute, copy_out)))

    def trace(self, on: bool = True) -> None:
        """Start or stop recording what happens."""
        self._library.mock_trace(int(on))

    def traced(self) -> list[str]:
        """The recorded lines."""
        return self._library.mock_traced().decode().splitlines()

    def note(self, text: str) -> None:
        """Add a line to the record."""
        self._library.mock_note(text.encode())

    def failed(self) -> str:
        """The name of the call that failed since `fail`."""
        return self._library.mock_failed().decode()

    def calls(self) -> int:
        """The number of calls since `fail`."""
        return self._library.mock_calls()

    def forget(self) -> None:
        """Count allocations from zero again."""
        self._library.mock_forget()

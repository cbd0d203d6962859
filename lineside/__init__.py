"""Lineside inspects parts on a production line. The names here are its public API; all other modules may move.

Each name is loaded when it is first used, so ``import lineside`` takes no time. docs/api.md has examples.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.base.errors import (
        BundleError,
        CameraError,
        EngineError,
        EngineLostError,
        InputError,
        LinesideError,
        LinkError,
    )
    from edge.bundle.bundle import load_bundle
    from edge.cameras.driver import Driver, Grabbed
    from edge.images.files import read_image
    from edge.inspection.inspector import Inspection, Inspector
    from edge.part.verdict import Cause, Verdict

__version__ = "0.2.0"
__all__ = [
    "BundleError",
    "CameraError",
    "Cause",
    "Driver",
    "EngineError",
    "EngineLostError",
    "Grabbed",
    "InputError",
    "Inspection",
    "Inspector",
    "LinesideError",
    "LinkError",
    "Verdict",
    "load_bundle",
    "read_image",
]

_HOMES = {
    "edge.base.errors": (
        "BundleError", "CameraError", "EngineError", "EngineLostError", "InputError", "LinesideError", "LinkError"),
    "edge.bundle.bundle": ("load_bundle",),
    "edge.cameras.driver": ("Driver", "Grabbed"),
    "edge.images.files": ("read_image",),
    "edge.inspection.inspector": ("Inspection", "Inspector"),
    "edge.part.verdict": ("Cause", "Verdict"),
    "lineside.cli": ("app", "main"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'lineside' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

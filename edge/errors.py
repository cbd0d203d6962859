"""The old path of the errors, for drivers written before 0.2. It goes with 0.3: import them from `lineside`."""

from __future__ import annotations

import warnings

from edge.base.errors import (
    EXIT_ENGINE_LOST,
    BundleError,
    CameraError,
    EngineError,
    EngineLostError,
    InputError,
    LinesideError,
    LinkError,
)

__all__ = ["EXIT_ENGINE_LOST", "BundleError", "CameraError", "EngineError", "EngineLostError", "InputError", "LinesideError", "LinkError"]

warnings.warn("edge.errors goes with Lineside 0.3; write: from lineside import CameraError", FutureWarning, stacklevel=2)

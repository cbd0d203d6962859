"""The old path of the errors, for drivers written before 0.2. It will be removed in 0.3; import from `lineside`."""

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

__all__ = ["EXIT_ENGINE_LOST", "BundleError", "CameraError", "EngineError", "EngineLostError", "InputError",
           "LinesideError", "LinkError"]

warnings.warn("edge.errors will be removed in Lineside 0.3; write: from lineside import CameraError", FutureWarning,
              stacklevel=2)

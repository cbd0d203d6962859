"""Camera `custom`: loads a driver from the user's file, and turns whatever that raises into a single message."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from edge.base.errors import CameraError, LinesideError
from edge.cameras.driver import Driver, Grabbed

METHODS = [name for name, value in vars(Driver).items() if inspect.isfunction(value) and not name.startswith("_")]
ADVICE = "docs/cameras.md shows a whole driver."
Value = TypeVar("Value")


def load_driver(driver: str, options: dict[str, Any], folder: Path) -> Driver:
    """Load ``FILE.py:CLASS`` (relative to ``folder``) and create the driver with ``options``. Raises CameraError."""
    file, colon, name = driver.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise CameraError("`driver` under [camera] names no class", got=repr(driver), expected="FILE.py:CLASS",
                          next=ADVICE)
    path = folder / file
    kind = _find_class(_import(path), path, name)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        takes = ", ".join(str(parameter) for parameter in inspect.signature(kind).parameters.values())
        raise CameraError(f"wrong options for {driver}", got=str(error), expected=takes or "no options",
                          next="Fix `options` under [camera] in the line file.") from error
    made = _call(path, f"{driver} cannot be created", lambda: kind(**options))
    _check(made, driver)
    return CheckedDriver(made, path)


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise CameraError(f"no driver at {path}", expected="a Python file",
                          next="Fix `driver` under [camera] in the line file.")
    name = f"lineside_driver_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # true for any file name that ends in .py
    loader, module = spec.loader, importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    _call(path, f"the driver {path} cannot be loaded", lambda: loader.exec_module(module))
    return module


def _find_class(module: ModuleType, path: Path, name: str) -> type:
    found = getattr(module, name, None)
    if inspect.isclass(found):
        return found
    own = [key for key, value in vars(module).items()
           if inspect.isclass(value) and value.__module__ == module.__name__]
    close = difflib.get_close_matches(name, own, 1)
    raise CameraError(f"no class {name!r} in {path}", next=ADVICE,
                      expected=f"{close[0]!r}" if close else ", ".join(own) or "a class")


def _check(driver: Any, name: str) -> None:
    missing = [f"{method}()" for method in METHODS if not callable(getattr(driver, method, None))]
    missing += [attribute for attribute in Driver.__annotations__ if not hasattr(driver, attribute)]
    if missing:
        methods = ", ".join(f"{method}()" for method in METHODS)
        raise CameraError(f"{name} is not a driver", got="a class without " + ", ".join(missing),
                          expected=f"{methods} and {', '.join(Driver.__annotations__)}", next=ADVICE)
    for method in METHODS:
        parameters = inspect.signature(getattr(Driver, method)).parameters
        arguments = [parameter for parameter in parameters if parameter != "self"]
        try:
            inspect.signature(getattr(driver, method)).bind(*arguments)
        except TypeError as error:
            raise CameraError(f"{method}() of {name} cannot be called", got=str(error),
                              expected=f"{method}({', '.join(arguments)})", next=ADVICE) from error


def _call(path: Path, what: str, call: Callable[[], Value]) -> Value:
    """Call the driver's code. Whatever it raises becomes a CameraError that names the line of the driver's file."""
    try:
        return call()
    except LinesideError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else None
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line = error.lineno
        text = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".rstrip(": ")
        raise CameraError(what, got=f"{text} (line {line} of {path})" if line else text,
                          next="Fix the driver, or its `options` under [camera].") from error


def _convert(kind: Callable[[Any], Value], value: Any) -> Value | None:
    return None if value is None else kind(value)


class CheckedDriver:
    """Wraps a user's driver: all its errors become CameraErrors, and its frames are checked."""

    def __init__(self, driver: Driver, path: Path) -> None:
        self._driver, self._path = driver, path
        self.name, self.ids = str(driver.name), driver.ids

    def _do(self, method: str, call: Callable[[], Value]) -> Value:
        return _call(self._path, f"{method}() of the driver failed", call)

    def connect(self) -> None:
        self._do("connect", self._driver.connect)
        self.name, self.ids = str(self._driver.name), self._driver.ids  # some drivers know them only now
        try:
            lowest, highest = self.ids
            valid = 0 <= lowest < highest
        except (TypeError, ValueError):
            valid = False
        if not valid:
            self.disconnect()
            raise CameraError(f"{self.name}: `ids` is not a range of frame ids", got=repr(self.ids),
                              expected="(lowest, highest)", next=ADVICE)

    def trigger(self) -> None:
        self._do("trigger", self._driver.trigger)

    def grab(self, timeout: float) -> Grabbed | None:
        """See `Driver`. Raises CameraError unless the image is C-contiguous uint8 ``[H, W, 1]`` or ``[H, W, 3]``."""
        grabbed = self._do("grab", lambda: self._driver.grab(timeout))
        if grabbed is None:
            return None
        if not isinstance(grabbed, Grabbed):
            raise CameraError(f"grab() of {self.name} returned no frame", got=type(grabbed).__name__,
                              expected="Grabbed or None", next=ADVICE)
        try:  # a driver may use NumPy numbers
            grabbed = replace(
                grabbed, frame_id=int(grabbed.frame_id), device_time=_convert(float, grabbed.device_time),
                encoder=_convert(int, grabbed.encoder), exposure_us=_convert(float, grabbed.exposure_us),
                text=str(grabbed.text))
        except (TypeError, ValueError) as error:
            raise CameraError(f"{self.name} delivers a frame with a field that should be a number", got=str(error),
                              next=ADVICE) from error
        image: Any = grabbed.image
        if image is None or _is_frame(image):
            return grabbed
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise CameraError(f"{self.name} delivers images that cannot be used", got=got,
                          expected="uint8 [height, width, 1] or [height, width, 3] in RGB, C-contiguous", next=ADVICE)

    def statistics(self) -> dict[str, int]:
        return self._do("statistics", self._driver.statistics)

    def disconnect(self) -> None:
        self._do("disconnect", self._driver.disconnect)


def _is_frame(image: Any) -> bool:
    return (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3)
            and bool(image.flags.c_contiguous))

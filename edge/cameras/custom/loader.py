"""Camera `custom`: a driver in a file of the line's own, such as one for a vendor's SDK. Whatever it raises is told as one message."""

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
    """A driver of the class ``driver``, ``FILE.py:CLASS`` with a path relative to ``folder``, made with ``options``. Raises CameraError."""
    file, colon, name = driver.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise CameraError("`driver` under [camera] names no class", got=repr(driver), expected="FILE.py:CLASS", next=ADVICE)
    path = folder / file
    kind = _find_class(_import(path), path, name)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        takes = ", ".join(str(parameter) for parameter in inspect.signature(kind).parameters.values())
        raise CameraError(f"wrong options for {driver}", got=str(error), expected=takes or "no options",
                          next="Mend `options` under [camera] in the line file.") from error
    made = _call(path, f"{driver} cannot be made", lambda: kind(**options))
    _check(made, driver)
    return CheckedDriver(made, path)


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise CameraError(f"no driver at {path}", expected="a Python file", next="Mend `driver` under [camera] in the line file.")
    name = f"lineside_driver_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    _call(path, f"the driver {path} cannot be loaded", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def _find_class(module: ModuleType, path: Path, name: str) -> type:
    found = getattr(module, name, None)
    if inspect.isclass(found):
        return found
    own = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
    close = difflib.get_close_matches(name, own, 1)
    raise CameraError(f"no class {name!r} in {path}", expected=f"{close[0]!r}" if close else ", ".join(own) or "a class", next=ADVICE)


def _check(driver: Any, name: str) -> None:
    lacking = [f"{method}()" for method in METHODS if not callable(getattr(driver, method, None))]
    lacking += [attribute for attribute in Driver.__annotations__ if not hasattr(driver, attribute)]
    if lacking:
        raise CameraError(f"{name} is no driver", got="a class without " + ", ".join(lacking), next=ADVICE,
                          expected=", ".join(f"{method}()" for method in METHODS) + " and " + ", ".join(Driver.__annotations__))
    for method in METHODS:
        arguments = [parameter for parameter in inspect.signature(getattr(Driver, method)).parameters if parameter != "self"]
        try:
            inspect.signature(getattr(driver, method)).bind(*arguments)
        except TypeError as error:
            raise CameraError(f"{method}() of {name} cannot be called", got=str(error),
                              expected=f"{method}({', '.join(arguments)})", next=ADVICE) from error


def _call(path: Path, what: str, call: Callable[[], Value]) -> Value:
    """What a call of the driver's code returns; whatever it raises becomes a CameraError that names the line of its file."""
    try:
        return call()
    except LinesideError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else lines[-1] if lines else None
        text = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".rstrip(": ")
        raise CameraError(what, got=f"{text} (line {line} of {path})" if line else text,
                          next="Mend the driver, or its `options` under [camera].") from error


def _as(kind: Callable[[Any], Value], value: Any) -> Value | None:
    return None if value is None else kind(value)


class CheckedDriver:
    """A driver whose errors are CameraErrors, and whose frames are as they have to be."""

    def __init__(self, driver: Driver, path: Path) -> None:
        self._driver, self._path = driver, path
        self.name, self.ids = str(driver.name), driver.ids

    def _do(self, method: str, call: Callable[[], Value]) -> Value:
        return _call(self._path, f"{method}() of the driver failed", call)

    def connect(self) -> None:
        self._do("connect", self._driver.connect)
        self.name, self.ids = str(self._driver.name), self._driver.ids  # it may know them only now
        try:
            lowest, highest = self.ids
            fine = 0 <= lowest < highest
        except (TypeError, ValueError):
            fine = False
        if not fine:
            self.disconnect()
            raise CameraError(f"{self.name}: `ids` are no frame ids", got=repr(self.ids), expected="(lowest, highest)", next=ADVICE)

    def trigger(self) -> None:
        self._do("trigger", self._driver.trigger)

    def grab(self, timeout: float) -> Grabbed | None:
        """As of `Driver`. Raises CameraError for what is no frame of uint8 ``[H, W, 1]`` or ``[H, W, 3]``, C-contiguous."""
        grabbed = self._do("grab", lambda: self._driver.grab(timeout))
        if grabbed is None:
            return None
        if not isinstance(grabbed, Grabbed):
            raise CameraError(f"grab() of {self.name} returned no frame", got=type(grabbed).__name__, expected="Grabbed or None",
                              next=ADVICE)
        try:  # a driver may count with numbers of numpy's
            grabbed = replace(grabbed, frame_id=int(grabbed.frame_id), device_time=_as(float, grabbed.device_time),
                              encoder=_as(int, grabbed.encoder), exposure_us=_as(float, grabbed.exposure_us), text=str(grabbed.text))
        except (TypeError, ValueError) as error:
            raise CameraError(f"{self.name} delivers a frame whose numbers are none", got=str(error), next=ADVICE) from error
        image: Any = grabbed.image
        if image is None or (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3)
                             and image.flags.c_contiguous):
            return grabbed
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise CameraError(f"{self.name} delivers images that cannot be used", got=got,
                          expected="uint8 [height, width, 1] or [height, width, 3] in RGB, C-contiguous", next=ADVICE)

    def statistics(self) -> dict[str, int]:
        return self._do("statistics", self._driver.statistics)

    def disconnect(self) -> None:
        self._do("disconnect", self._driver.disconnect)

"""A camera's features by their SFNC names. Values are checked against the camera's own limits before they are set."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edge.base.errors import CameraError
from edge.cameras.genicam.aravis import load_aravis

Value = bool | int | float | str

ALIASES = (  # the SFNC name first, then those of older cameras
    ("ExposureTime", "ExposureTimeAbs", "ExposureTimeRaw"),
    ("Gain", "GainAbs", "GainRaw"),
    ("BlackLevel", "BlackLevelAbs", "BlackLevelRaw"),
    ("AcquisitionFrameRate", "AcquisitionFrameRateAbs"),
    ("AcquisitionFrameRateEnable", "AcquisitionFrameRateEnabled"),
    ("TriggerDelay", "TriggerDelayAbs"),
    ("LineDebouncerTime", "LineDebouncerTimeAbs"),
    ("DeviceSerialNumber", "DeviceID"),
)


class Features:
    """The features of an open Aravis device."""

    def __init__(self, device: Any, camera: str) -> None:
        """camera: its name, for messages."""
        self._aravis, self._glib = load_aravis()
        self._device, self._camera = device, camera

    def has(self, name: str) -> bool:
        """Whether the camera has a feature of exactly this name that can be used now."""
        try:
            return bool(self._device.is_feature_available(name))
        except self._glib.Error:
            return False

    def name_of(self, name: str) -> str | None:
        """The camera's name for a feature: its SFNC name or one from older cameras. None if it has no such feature."""
        names = next((group for group in ALIASES if name in group), ())
        return next((other for other in (name, *names) if self.has(other)), None)

    def names(self) -> list[str]:
        """The names of all features."""
        found: list[str] = []
        waiting = ["Root"]
        while waiting:
            node = self._device.get_feature(waiting.pop())
            if isinstance(node, self._aravis.GcCategory):
                waiting.extend(node.get_features())
            elif node is not None:
                found.append(node.get_name())
        return sorted(set(found))

    def entries(self, name: str) -> dict[str, int]:
        """The entries of an enumeration that can be chosen now, with their values. Raises CameraError."""
        with self._translated(name):
            return dict(zip(self._device.dup_available_enumeration_feature_values_as_strings(name),
                            self._device.dup_available_enumeration_feature_values(name), strict=True))

    def number(self, name: str) -> float:
        """The value of a number. Raises CameraError."""
        with self._translated(name):
            if isinstance(self._device.get_feature(name), self._aravis.GcFloat):
                return float(self._device.get_float_feature_value(name))
            return int(self._device.get_integer_feature_value(name))

    def text(self, name: str) -> str:
        """The value of an enumeration or a string. Raises CameraError."""
        with self._translated(name):
            return str(self._device.get_string_feature_value(name))

    def limits(self, name: str) -> tuple[float, float, float]:
        """Lowest value, highest value and step of a number. If the camera does not say: infinite limits, step 0."""
        kind = "float" if isinstance(self._device.get_feature(name), self._aravis.GcFloat) else "integer"
        found = []
        for what in ("bounds", "increment"):
            try:
                found.append(getattr(self._device, f"get_{kind}_feature_{what}")(name))
            except self._glib.Error:
                found.append(None)
        low, high = (-math.inf, math.inf) if found[0] is None else found[0]
        step = 0 if kind == "float" or not found[1] else found[1]
        return low, high, step

    def set(self, name: str, value: Value, key: str = "") -> None:
        """Set a feature, or execute a command with True.

        key: the key of the line file that sets it, if it is not an entry of `features`. Raises CameraError that names
        what was expected: the limits, the entries, the type, or the nearest name.
        """
        known = self.name_of(name)
        shown = f"`{key}` ({name})" if key else f"feature {name}"
        if known is None:
            raise self._unknown(name, shown)
        node = self._device.get_feature(known)
        with self._translated(known, f"{shown} cannot be set", value):
            if self._device.get_feature_access_mode(known) == self._aravis.GcAccessMode.RO:
                raise CameraError(f"{self._camera}: {shown} can only be read", got=f"{value!r} to set")
            if isinstance(node, self._aravis.GcCommand):
                self._expect(value is True, shown, value, "true, which executes it")
                self._device.execute_command(known)
            elif isinstance(node, self._aravis.GcBoolean):
                self._expect(isinstance(value, bool), shown, value, "true or false")
                self._device.set_boolean_feature_value(known, value)
            elif isinstance(node, self._aravis.GcEnumeration):
                entries = self.entries(known)
                known_entry = isinstance(value, str) and value in entries
                self._expect(known_entry, shown, value, "one of " + ", ".join(entries))
                self._device.set_string_feature_value(known, value)
            elif isinstance(node, self._aravis.GcFloat):
                self._device.set_float_feature_value(known, float(self._number(known, shown, value)))
            elif isinstance(node, self._aravis.GcInteger):
                self._device.set_integer_feature_value(known, int(self._number(known, shown, value)))
            else:
                self._expect(isinstance(value, str), shown, value, "a text")
                self._device.set_string_feature_value(known, value)

    def _number(self, known: str, shown: str, value: Value) -> float:
        low, high, step = self.limits(known)
        wanted = f"{low:.12g} to {high:.12g}" + (f" in steps of {step:g}" if step > 1 else "")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(shown, value, f"a number, {wanted}")
        whole = isinstance(self._device.get_feature(known), self._aravis.GcFloat) or value == int(value)
        self._expect(whole, shown, value, f"a whole number, {wanted}")
        on_step = step <= 1 or not (value - low) % step
        self._expect(low <= value <= high and on_step, shown, value, wanted)
        return value

    def _expect(self, holds: bool, shown: str, value: Value, wanted: str) -> None:
        if not holds:
            raise self._wrong(shown, value, wanted)

    def _wrong(self, shown: str, value: Value, wanted: str) -> CameraError:
        return CameraError(f"{self._camera}: {shown} does not accept this value", got=repr(value), expected=wanted,
                           next="Fix it under [camera].")

    def _unknown(self, name: str, shown: str) -> CameraError:
        names = self.names()
        if name in names:
            return CameraError(f"{self._camera}: {shown} cannot be used now", next="Another feature disables it.")
        close = difflib.get_close_matches(name, names, 3, 0.6)
        return CameraError(f"{self._camera} has no {shown}", next="`arv-tool-0.8 features` lists them.",
                           expected="perhaps " + " or ".join(close) if close else "one of its features")

    @contextmanager
    def _translated(self, name: str, what: str = "", value: object = None) -> Iterator[None]:
        """Turn errors of Aravis into a CameraError."""
        try:
            yield
        except self._glib.Error as error:
            text = what or f"feature {name} cannot be read"
            raise CameraError(f"{self._camera}: {text}: {error.message}", got=value) from error

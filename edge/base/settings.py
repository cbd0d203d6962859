"""TOML files checked by pydantic models.

Unknown keys are errors; an error names the key, its value and what is expected.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, ValidationError
from tomlkit.exceptions import TOMLKitError

from edge.base.errors import LinesideError
from edge.base.kinds import OneOf, find_one_of


class Settings(BaseModel):
    """Base of all settings: frozen, without unknown keys, without silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Model = TypeVar("Model", bound=Settings)


def read_toml(path: Path, error: type[LinesideError], next: str) -> dict[str, Any]:
    """The content of a TOML file as plain Python values.

    Raises ``error`` with ``next`` as advice if it cannot be read.
    """
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except FileNotFoundError as cause:
        raise error(f"no file {path}", got="nothing", expected="a TOML file", next=next) from cause
    except OSError as cause:
        raise error(f"cannot read {path}", got=cause.strerror, expected="a readable TOML file", next=next) from cause
    except (TOMLKitError, UnicodeDecodeError) as cause:
        raise error(f"{path} is not valid TOML", got=str(cause), next=next) from cause


def validate(model: type[Model], data: dict[str, Any], source: Path, error: type[LinesideError], next: str) -> Model:
    """``data`` as a ``model``.

    Raises ``error``, which names each wrong key of ``source``, its value and what is expected.
    """
    try:
        return model.model_validate(data)
    except ValidationError as cause:
        problems = "; ".join(_describe(model, data, problem) for problem in cause.errors())
        raise error(f"{source}: {problems}", next=next) from cause


def _describe(model: type[BaseModel], data: object, problem: Any) -> str:
    location = problem["loc"]
    key = ".".join(str(name) for name in location if name != 0)  # the first section of a list has the list's name
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, data, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else "expected one of " + ", ".join(known)
        return f"unknown key {key!r}, {hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"key {key!r} got {problem['input']!r}, expected {expected}"


def _known_keys(model: type[BaseModel], data: Any, location: tuple[Any, ...]) -> list[str]:
    """The valid keys of the section at ``location`` in ``data``, which is checked by ``model``."""
    one_of: OneOf | None = None
    for name in location:
        if isinstance(name, int):
            data = data[name] if isinstance(data, list) else data  # a single section counts as a list
        else:
            data, field = data[name], model.model_fields[name]
            candidates = [field.annotation, *get_args(field.annotation)]
            model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
            one_of = next((m for m in field.metadata if isinstance(m, OneOf)), None) or find_one_of(field.annotation)
        if one_of is not None and isinstance(data, dict):
            model = resolve_name(one_of.registry[data["kind"]])
    return list(model.model_fields)


def without_password(text: str) -> str:
    """A text without the user names and passwords in its addresses, fit to be shown."""
    return re.sub(r"//[^/@\s]*@", "//", text)

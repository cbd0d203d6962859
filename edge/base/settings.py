"""TOML files checked by pydantic models: unknown keys forbidden, an error names key, value and what is expected."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, ValidationError
from tomlkit.exceptions import TOMLKitError

from edge.base.errors import LinesideError


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown key, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Model = TypeVar("Model", bound=Settings)


def read_toml(path: Path, error: type[LinesideError], next: str) -> dict[str, Any]:
    """The content of a TOML file as plain Python values; ``error`` with ``next`` as advice when it cannot be read."""
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except FileNotFoundError as cause:
        raise error(f"no file {path}", got="nothing", expected="a TOML file", next=next) from cause
    except OSError as cause:
        raise error(f"cannot read {path}", got=cause.strerror, expected="a readable TOML file", next=next) from cause
    except (TOMLKitError, UnicodeDecodeError) as cause:
        raise error(f"{path} is not valid TOML", got=str(cause), next=next) from cause


def validate(model: type[Model], data: dict[str, Any], source: Path, error: type[LinesideError], next: str) -> Model:
    """``data`` as a ``model``; ``error`` names each wrong key of ``source``, what it got, and what it expects."""
    try:
        return model.model_validate(data)
    except ValidationError as cause:
        problems = "; ".join(_describe(model, problem) for problem in cause.errors())
        raise error(f"{source}: {problems}", next=next) from cause


def _describe(model: type[BaseModel], problem: Any) -> str:
    location = problem["loc"]
    named = [name for number, name in enumerate(location) if not _is_tag(model, location, number)]
    key = ".".join(str(name) for name in named if name != 0)  # the first one of a list goes by the list's name
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else "expected one of " + ", ".join(known)
        return f"unknown key {key!r}, {hint}"
    if problem["type"].startswith("union_tag"):
        key = f"{key}.{problem['ctx']['discriminator'].strip(chr(39))}"
        if problem["type"] == "union_tag_invalid":
            return f"key {key!r} got {problem['ctx']['tag']!r}, expected {problem['ctx']['expected_tags']}"
    if problem["type"] in ("missing", "union_tag_not_found"):
        return f"key {key!r} is missing"
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"key {key!r} got {problem['input']!r}, expected {expected}"


def _is_tag(model: type[BaseModel], location: tuple[Any, ...], number: int) -> bool:
    """Whether a name in a location is no key, but says which model of a union was taken."""
    field = model.model_fields.get(str(location[0]))
    place = 2 if len(location) > 1 and isinstance(location[1], int) else 1
    return number == place and field is not None and location[number] in _choices(field.annotation)


def _choices(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models of a union, or of a list of such, by their ``kind``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return {} if kind is None else {get_args(kind.annotation)[0]: annotation}
    return {name: model for part in get_args(annotation) for name, model in _choices(part).items()}


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for name in location:
        field = model.model_fields.get(str(name))
        if field is None:  # an index into a list, or the tag of a union
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        choices = _choices(field.annotation)
        candidates = [choices[tag] for tag in location if tag in choices] or candidates
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)

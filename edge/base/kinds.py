"""Registries of kinds, such as those of cameras: each kind is a class in its own file, and one line in the registry.

A registry maps a kind's name to ``"module:Class"``. The module is imported when the kind is first needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

Registry = Mapping[str, str]


class OneOf:
    """Annotation of a settings field that holds a section of one of several kinds.

    The section's key ``kind`` names its class in ``registry``.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._section, handler(source))

    def _section(self, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if "kind" not in given:
            raise _error("missing", None)
        if (name := given["kind"]) not in self.registry:
            known = ", ".join(repr(kind) for kind in self.registry)
            raise _error(PydanticCustomError("unknown_kind", "one of {known}", {"known": known}), name)
        return resolve_name(self.registry[name]).model_validate(given)


def _error(problem: PydanticCustomError | str, given: object) -> ValidationError:
    return ValidationError.from_exception_data("section", [InitErrorDetails(type=problem, loc=("kind",), input=given)])


def find_one_of(annotation: Any) -> OneOf | None:
    """The `OneOf` in a type annotation such as ``list[Annotated[Section, OneOf(...)]]``, or None."""
    parts = [*getattr(annotation, "__metadata__", ()), *getattr(annotation, "__args__", ())]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None
    found = (part if isinstance(part, OneOf) else find_one_of(part) for part in parts)
    return next((one_of for one_of in found if one_of is not None), None)

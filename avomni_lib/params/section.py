"""Base class of the sections of a params file: converts values that are clear, refuses others."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from avomni_lib.params import grids

SMALLEST, LARGEST = 1e-12, 1e12  # except 0
LONGEST_TEXT = 1000
ROWS = str | grids.Rows
INTEGER = r"[-+]?(0|[1-9][0-9]*)"
NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"


class Section(BaseModel):
    """A frozen set of keys.

    Numbers may be given as text (YAML reads `1e-4` as text), duplicates in lists are dropped, and
    true is not accepted for 1, nor 1 for true.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        kinds = _kinds(cls.model_fields[name].annotation)
        if any(isinstance(kind, type) and issubclass(kind, Section) for kind in kinds):
            return {} if value is None else value
        if isinstance(value, list | tuple) and cls.model_fields[name].annotation == ROWS:
            return value  # checked by its own validator
        if isinstance(value, list | tuple) and tuple in kinds:
            if not value:
                raise ValueError("an empty list: name something, or write null to ask for nothing")
            if not all(isinstance(item, str | int | float) for item in value):
                raise ValueError("its items are single values")
            return tuple(dict.fromkeys(_scalar(item, kinds) for item in value))
        value = _scalar(value, kinds)
        if isinstance(value, str) and "$" in value:
            raise ValueError("variables such as $HOME are not filled in here: write the value out")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that a value may have; for a tuple, `tuple` and the types of its items."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType, tuple):
        inner = [_kinds(part) for part in get_args(annotation) if part is not Ellipsis]
        return set().union(*inner) | ({tuple} if origin is tuple else set())
    return {Literal if origin is Literal else annotation}


def _scalar(value: Any, kinds: set[Any]) -> Any:
    if isinstance(value, str) and not kinds & {str, Literal}:
        if bool in kinds:
            if value.lower() not in ("true", "false"):
                raise ValueError("write true or false")
            return value.lower() == "true"
        if kinds & {int, float}:
            if not re.fullmatch(INTEGER if int in kinds else NUMBER, value):
                valid = "integer" if int in kinds else "number"
                raise ValueError(f"Input should be a valid {valid}, in plain digits")
            value = float(value) if len(value) > 15 or float in kinds else int(value)
    if isinstance(value, str):
        if not value.isprintable():
            raise ValueError("holds a character that cannot be printed")
        if not value or value != value.strip():
            raise ValueError("is empty, or begins or ends with a space")
        if len(value) > LONGEST_TEXT:
            raise ValueError(f"is longer than {LONGEST_TEXT} characters")
    elif isinstance(value, bool):
        if kinds & {int, float}:
            raise ValueError("a number is wanted, neither true nor false")
    elif isinstance(value, int | float):
        if bool in kinds:
            raise ValueError("write true or false")
        if LARGEST < abs(value) < float("inf") or 0 < abs(value) < SMALLEST:
            raise ValueError(f"is out of range: {SMALLEST:g} to {LARGEST:g}, or 0")
        if str in kinds:
            raise ValueError("text is wanted: put it in quotes")
    return value

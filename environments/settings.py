"""Checks of an environment's settings; a wrong one raises an error of one line that names it."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

Kind = TypeVar("Kind", bound=StrEnum)


def require(valid: bool, name: str, value: object, allowed: str) -> None:
    """Raise a `ValueError` that names the setting and what it must be, unless it is valid."""
    if not valid:
        raise ValueError(f"env.{name}={value}: must be {allowed}")


def is_int(value: object, minimum: int, maximum: float = math.inf) -> bool:
    """Return whether a value is an integer (not a boolean) from `minimum` to `maximum`."""
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def is_number(value: object, minimum: float = -math.inf, maximum: float = math.inf) -> bool:
    """Return whether a value is a finite number (not a boolean) from `minimum` to `maximum`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -math.inf < value < math.inf and minimum <= value <= maximum


def member(kind: type[Kind], name: str, value: str) -> Kind:
    """Return the member of an enum with this value; the command line gives it as text."""
    require(value in list(kind), name, value, " or ".join(kind))
    return kind(value)

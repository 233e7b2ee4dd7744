"""How environments check their settings: a wrong one is named in one line."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

Kind = TypeVar("Kind", bound=StrEnum)


def require(valid: bool, name: str, value: object, what: str) -> None:
    """Raises a `ValueError` that names the setting and says what it must be."""
    if not valid:
        raise ValueError(f"env.{name}={value}: must be {what}")


def is_int(value: object, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether it is a finite number from `least` to `most`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -math.inf < value < math.inf and least <= value <= most


def member(kind: type[Kind], name: str, value: str) -> Kind:
    """The member of that value, which a command line gives as text."""
    require(value in list(kind), name, value, " or ".join(kind))
    return kind(value)

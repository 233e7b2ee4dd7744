"""Checks of an environment's settings; a wrong one raises an error of one line that names it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

Kind = TypeVar("Kind", bound=StrEnum)


def require(valid: bool, name: str, value: object, allowed: str) -> None:
    """Raise a `ValueError` that names the setting and what it must be, unless it is valid."""
    if not valid:
        raise ValueError(f"env.{name}={value}: must be {allowed}")


def did_you_mean(word: str, choices: Iterable[object]) -> str:
    """Return `; did you mean X?` for the choice that is most like the word; "" if none is."""
    by_stem: dict[str, str] = {}
    for choice in map(str, choices):
        by_stem.setdefault(_stem(choice), choice)
    # A name whose beginning was typed comes first.
    longer = sorted(stem for stem in by_stem if word and stem.startswith(_stem(word)))
    similar = longer or difflib.get_close_matches(_stem(word), by_stem, n=1, cutoff=0.6)
    return f"; did you mean {by_stem[similar[0]]}?" if similar else ""


def _stem(name: str) -> str:
    """Return the name without capitals and without a version such as -v0, which many have."""
    return re.sub(r"-v\d+$", "", name.lower())


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

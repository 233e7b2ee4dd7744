"""The parts of the reward of GSM8K, each 0 or 1, without their weights."""

from __future__ import annotations

from decimal import Decimal


def correct(answered: Decimal | None, gold: Decimal) -> float:
    """Return 1 if the reply's number is the right one, else 0."""
    return float(answered == gold)


def readable(answered: Decimal | None) -> float:
    """Return 1 if the reply marks one number as its answer, right or wrong, else 0."""
    return float(answered is not None)

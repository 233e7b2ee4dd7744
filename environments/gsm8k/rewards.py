"""The parts of the reward of GSM8K, each 0 or 1, before their weights."""

from __future__ import annotations

from decimal import Decimal


def correct(answered: Decimal | None, gold: Decimal) -> float:
    """Whether the reply's number is the right one."""
    return float(answered == gold)


def readable(answered: Decimal | None) -> float:
    """Whether the reply marks one number, right or wrong, as its answer."""
    return float(answered is not None)

"""95 % confidence intervals of a rate, of a mean and of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

_Z = 1.959964  # two-sided 95 % quantile of the standard normal distribution


class Estimate(NamedTuple):
    """An estimated value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def rate(successes: int, n: int) -> Estimate:
    """Return the share of successes in `n` trials with its Wilson score interval.

    Wilson 1927 (JASA 22); the form used here is that of Brown et al. 2001 (Statist. Sci. 16).
    """
    p = successes / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # At p = 0 and p = 1 one bound equals p; rounding alone would put it beside p.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean with its normal interval, which has no width for a single value."""
    centre = fmean(values)
    half = _Z * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(centre, centre - half, centre + half)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Return the mean of after - before, where both list the same seeds in the same order."""
    return mean([b - a for a, b in zip(before, after, strict=True)])


def format_estimate(estimate: Estimate | None, sign: str = "") -> str:
    """Format an estimate for a table: `0.864  0.841 to 0.884`, or `-` for None.

    `sign="+"` writes positive numbers with their sign.
    """
    if estimate is None:
        return "-"
    value, low, high = (format(number, f"{sign}.3f") for number in estimate)
    return f"{value}  {low} to {high}"

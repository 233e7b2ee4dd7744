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


class Cluster(NamedTuple):
    """Values of one task: their number and their sum. Values of one task are not independent."""

    n: int
    total: float


def rate(successes: int, n: int) -> Estimate:
    """Return the share of successes in `n` independent trials with its Wilson score interval.

    Wilson 1927 (JASA 22); the form used here is that of Brown et al. 2001 (Statist. Sci. 16).
    """
    return _wilson(successes / n, n)


def clustered_rate(clusters: Sequence[Cluster]) -> Estimate:
    """Return the mean of values from 0 to 1 with an interval that lies within 0 and 1.

    It is the Wilson interval at the effective number of independent trials, n = p (1 - p) / v,
    where v is the variance of the ratio estimate over clusters (Korn and Graubard 1998, Survey
    Methodology 24, use this n for another interval). With one trial in each cluster it is `rate`.
    Where no two clusters differ, v says nothing: n is then the number of clusters.
    """
    if all(cluster.n == 1 and cluster.total in (0, 1) for cluster in clusters):
        return rate(int(sum(cluster.total for cluster in clusters)), len(clusters))
    trials = sum(cluster.n for cluster in clusters)
    p = sum(cluster.total for cluster in clusters) / trials
    variance = sum((cluster.total - p * cluster.n) ** 2 for cluster in clusters) / trials**2
    if math.isclose(variance, 0.0, abs_tol=1e-12):
        return _wilson(p, len(clusters))
    return _wilson(p, min(trials, p * (1 - p) / variance))


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean with its normal interval, which has no width for a single value."""
    centre = fmean(values)
    half = _Z * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(centre, centre - half, centre + half)


def clustered_mean(clusters: Sequence[Cluster]) -> Estimate:
    """Return the mean of all values with a normal interval for which clusters are independent.

    The variance is that of a ratio estimate (Cochran 1977, Sampling Techniques, section 6.3); it
    is zero for a single cluster.
    """
    if all(cluster.n == 1 for cluster in clusters):
        return mean([cluster.total for cluster in clusters])
    trials, count = sum(cluster.n for cluster in clusters), len(clusters)
    centre = sum(cluster.total for cluster in clusters) / trials
    squares = sum((cluster.total - centre * cluster.n) ** 2 for cluster in clusters)
    half = _Z * math.sqrt(squares * count / (count - 1)) / trials if count > 1 else 0.0
    return Estimate(centre, centre - half, centre + half)


def clustered_rate_difference(clusters: Sequence[Cluster]) -> Estimate:
    """Return the mean of differences of rates, from -1 to 1, with an interval within -1 and 1.

    The interval is that of `clustered_mean`. Where no two clusters differ, that has no width: it
    is then widened by what equally many clusters without a success leave open for a rate.
    """
    value, low, high = clustered_mean(clusters)
    if math.isclose(low, high, abs_tol=1e-12):
        open_share = _wilson(0.0, len(clusters)).high
        low, high = value - open_share, value + open_share
    return Estimate(value, max(-1.0, low), min(1.0, high))


def _wilson(p: float, n: float) -> Estimate:
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(max(0.0, p * (1 - p)) / n + _Z**2 / (4 * n**2))
    # At p = 0 and p = 1 one bound equals p; rounding alone would put it beside p.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def format_estimate(estimate: Estimate | None, sign: str = "") -> str:
    """Format an estimate for a table: `0.864  0.841 to 0.884`, or `-` for None.

    `sign="+"` writes positive numbers with their sign.
    """
    if estimate is None:
        return "-"
    value, low, high = (format(number, f"{sign}.3f") for number in estimate)
    return f"{value}  {low} to {high}"

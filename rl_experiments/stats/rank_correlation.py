"""How well one ranking follows another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import StatisticsError, correlation


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks (Spearman 1904); None where one side does not vary."""
    try:
        found = correlation(_ranks(first), _ranks(second))
    except StatisticsError:
        return None
    return found if math.isfinite(found) else None


def agreement(judged: Sequence[float], truth: Sequence[float]) -> float | None:
    """The share of pairs that differ in truth and are judged the right way round; ties are half."""
    found = []
    for (judged_one, true_one), (judged_other, true_other) in combinations(
        zip(judged, truth, strict=True), 2
    ):
        if true_one != true_other:
            way = (judged_one - judged_other) * (true_one - true_other)
            found.append(0.5 if way == 0 else float(way > 0))
    return sum(found) / len(found) if found else None


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of their ranks (Kendall 1945, Biometrika 33)."""
    order = sorted(values)
    first = {value: rank for rank, value in reversed([*enumerate(order, 1)])}
    last = {value: rank for rank, value in enumerate(order, 1)}
    return [(first[value] + last[value]) / 2 for value in values]

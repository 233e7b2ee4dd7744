"""How well one ranking agrees with another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import StatisticsError, correlation


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Pearson's correlation of the ranks, or None where one side does not vary.

    Spearman 1904 (Am. J. Psychol. 15).
    """
    try:
        coefficient = correlation(_ranks(first), _ranks(second))
    except StatisticsError:
        return None
    return coefficient if math.isfinite(coefficient) else None


def agreement(judged: Sequence[float], truth: Sequence[float]) -> float | None:
    """Return the share of pairs with different true values that are judged in the right order.

    A pair with equal judged values counts as half. None if all true values are equal.
    """
    pairs = []
    for (judged_one, true_one), (judged_other, true_other) in combinations(
        zip(judged, truth, strict=True), 2
    ):
        if true_one != true_other:
            product = (judged_one - judged_other) * (true_one - true_other)
            pairs.append(0.5 if product == 0 else float(product > 0))
    return sum(pairs) / len(pairs) if pairs else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank from 1; equal values share the mean of their ranks (Kendall 1945, Biometrika 33)."""
    first_rank: dict[float, int] = {}
    last_rank: dict[float, int] = {}
    for rank, value in enumerate(sorted(values), start=1):
        first_rank.setdefault(value, rank)
        last_rank[value] = rank
    return [(first_rank[value] + last_rank[value]) / 2 for value in values]

"""Intervals contain the rate that they are of."""

from __future__ import annotations

from rl_experiments.stats.intervals import rate


def test_a_rate_lies_within_its_interval() -> None:
    for n in range(1, 1001):
        for wins in {0, 1, n // 2, n}:
            value, low, high = rate(wins, n)
            assert 0 <= low <= value <= high <= 1
        assert rate(0, n).low == 0 and rate(n, n).high == 1

"""Intervals contain the rate that they are of."""

from __future__ import annotations

from random import Random

import pytest

from rl_experiments.stats.intervals import Cluster, clustered_rate, rate


def test_a_rate_lies_within_its_interval() -> None:
    for n in range(1, 1001):
        for wins in {0, 1, n // 2, n}:
            value, low, high = rate(wins, n)
            assert 0 <= low <= value <= high <= 1
        assert rate(0, n).low == 0 and rate(n, n).high == 1


def test_clusters_of_one_trial_have_the_interval_of_independent_trials() -> None:
    for wins, n in ((0, 3), (1, 3), (7, 20), (400, 1000)):
        clusters = [Cluster(2, 2.0 * (i < wins)) for i in range(n)]  # each trial twice
        assert clustered_rate(clusters) == pytest.approx(rate(wins, n))


def test_intervals_of_clusters_contain_the_true_rate_as_often_as_they_claim() -> None:
    draw, tasks, hits = Random(0), 40, 0
    for _ in range(1000):
        chances = [draw.betavariate(1, 3) for _ in range(tasks)]  # their mean is 1/4
        clusters = [Cluster(10, sum(draw.random() < p for _ in range(10))) for p in chances]
        _, low, high = clustered_rate(clusters)
        assert 0 <= low <= high <= 1
        hits += low <= 0.25 <= high
    assert 925 <= hits <= 975

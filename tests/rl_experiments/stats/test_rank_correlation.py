"""Rank correlations, against values worked out by hand."""

from __future__ import annotations

import pytest

from rl_experiments.stats.rank_correlation import agreement, spearman


def test_spearman_gives_ties_their_mean_rank() -> None:
    # Ranks (1, 2.5, 2.5, 4) and (1, 3, 2, 4): by hand 4.5 / sqrt(4.5 * 5).
    assert spearman([0.1, 0.5, 0.5, 0.9], [1, 3, 2, 4]) == pytest.approx(0.9486833)
    assert spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)


def test_spearman_is_none_where_one_side_does_not_vary() -> None:
    assert spearman([0.5, 0.5], [1, 2]) is None and spearman([1, 2], [3, 3]) is None


def test_agreement_counts_pairs_in_the_right_order() -> None:
    # Five pairs differ in truth; one of them is tied in the scores.
    assert agreement([1, 1, 2, 0], [1, 2, 3, 1]) == pytest.approx((0.5 + 1 + 1 + 1 + 1) / 5)
    assert agreement([1, 2], [3, 3]) is None

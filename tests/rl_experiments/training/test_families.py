"""Models of eight families are played, trained, resumed bit for bit, exported, and play the same.

Each pair of choices comes at least once here; `python -m benchmarks.families` runs all of them.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from tests.support.family_runs import Case, all_cases, covering_cases, run


def test_each_pair_of_choices_is_covered() -> None:
    def pairs(case: Case) -> set[frozenset[tuple[str, object]]]:
        return {frozenset(pair) for pair in combinations(vars(case).items(), 2)}

    wanted, covered = (set().union(*map(pairs, cases)) for cases in (all_cases(), covering_cases()))
    assert covered == wanted


@pytest.mark.slow
@pytest.mark.parametrize("case", covering_cases(), ids=str)
def test_a_family_is_trained_resumed_and_exported(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)

"""Results of an evaluation, summed up from episode records and compared by pairs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from rl_experiments.evaluation import tables
from rl_experiments.evaluation.results import PolicyResult, pass_at
from rl_experiments.stats.intervals import Estimate


def record(seed: int, *, won: bool, reward: float | None = 0.0, **fields: Any) -> dict[str, Any]:
    end = "failed" if reward is None else "won" if won else "lost"
    return {
        "seed": seed,
        "won": won,
        "reward": reward,
        "end": end,
        "turns": 2,
        "tokens": 3,
    } | fields


def rate(result: PolicyResult) -> Estimate:
    assert result.win_rate is not None
    return result.win_rate


def test_pass_at_k_is_the_share_of_draws_with_a_win() -> None:
    episodes = [True, False, False, True, False]
    for k in range(1, 6):
        draws = list(combinations(episodes, k))
        assert pass_at(k, 2, 5) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_failed_episodes_count_as_lost_and_have_no_reward() -> None:
    records = [
        record(0, won=True, reward=1.0),
        record(1, won=False, reward=None),
        record(2, won=False),
    ]
    result = PolicyResult.from_records("p", records, [0, 1, 2])
    assert rate(result).value == pytest.approx(1 / 3) and result.failed == 1
    assert result.reward and result.reward.value == pytest.approx(0.5)
    assert result.ends == {"won": 1, "failed": 1, "lost": 1}
    assert result.pass_at == {} and result.categories == {} and result.usd is None


def test_a_policy_whose_episodes_all_failed_has_no_figures() -> None:
    errors = ["status 400: no", "status 400: no", "the connection failed"]
    records = [record(s, won=False, reward=None, error=error) for s, error in enumerate(errors)]
    result = PolicyResult.from_records("p", records, [0, 1, 2])
    assert result.win_rate is None and result.reward is None and result.pass_at == {}
    assert result.commonest_failure == "status 400: no" and result.failed == 3
    saved = result.to_json()
    assert saved["win_rate"] is None and saved["failures"]["status 400: no"] == 2
    played = PolicyResult.from_records("q", [record(s, won=True) for s in range(3)], [0, 1, 2])
    assert played.minus(result) == result.minus(played) == (None, None)
    table = tables.main_table({"p": result, "q": played}, [("p", "q")], seeds=3)
    assert [str(next(iter(column.cells))) for column in table.columns] == ["p", "3", "-", "-"]
    assert "status 400: no" in tables.notes("p", result, reply_limit=9)[0]


def test_cut_and_withheld_replies_are_counted() -> None:
    records = [record(s, won=False, cut_replies=s, withheld_replies=1) for s in range(3)]
    result = PolicyResult.from_records("p", records, [0, 1, 2])
    cut, withheld = tables.notes("p", result, reply_limit=128)
    assert "p: 3 of 6 replies were cut at trainer.max_completion_length=128" in cut
    assert "p: 3 of 6 replies were withheld" in withheld


def test_seeds_with_several_episodes_count_as_one_observation_each() -> None:
    records = [record(seed, won=seed == 0) for seed in (0, 1) for _ in range(3)]
    result = PolicyResult.from_records("p", records, [0, 1])
    assert (result.n, result.episodes, rate(result).value) == (2, 6, 0.5)
    assert list(result.pass_at) == [1, 2, 3]
    assert result.win_rate == pytest.approx(result.pass_at[1])


def test_an_interval_counts_different_tasks_however_often_they_recur() -> None:
    seeds = range(600)
    records = [record(seed, won=seed % 6 < 3, task=f"question {seed % 6}") for seed in seeds]
    often = PolicyResult.from_records("often", records, seeds)
    once = PolicyResult.from_records("once", records[:6], seeds[:6])
    assert (often.n, often.episodes) == (6, 600)
    assert often.win_rate == pytest.approx(once.win_rate)
    nothing = [record(seed, won=False, task=f"question {seed % 6}") for seed in seeds]
    difference, _ = often.minus(PolicyResult.from_records("nothing", nothing, seeds))
    assert difference and difference.high - difference.low > 0.5


@pytest.mark.parametrize("won", [True, False])
def test_few_seeds_prove_nothing_for_certain(won: bool) -> None:
    records = [record(seed, won=won) for seed in range(3) for _ in range(2)]
    result = PolicyResult.from_records("p", records, range(3))
    for estimate in (rate(result), *result.pass_at.values()):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high - estimate.low > 0.5
    same, _ = result.minus(result)
    assert same and same.value == 0 and -1 <= same.low < -0.5 and 0.5 < same.high <= 1


def test_categories_have_results_of_their_own_seeds() -> None:
    records = [record(0, won=True, category="a"), record(1, won=False, category="b")]
    result = PolicyResult.from_records("p", records, [0, 1])
    assert {name: rate(part).value for name, part in result.categories.items()} == {
        "a": 1.0,
        "b": 0.0,
    }


def test_differences_are_paired_by_seed() -> None:
    rewards = {"one": (1.0, 2.0, None), "other": (0.5, 1.5, 3.0)}
    results = {
        name: PolicyResult.from_records(
            name,
            [record(s, won=name == "one", reward=value) for s, value in enumerate(values)],
            [0, 1, 2],
        )
        for name, values in rewards.items()
    }
    wins, reward = results["one"].minus(results["other"])
    assert wins and wins.value == wins.high == 1.0 > wins.low > 0.0  # three seeds prove little
    assert reward == (0.5, 0.5, 0.5)  # the seed without a reward of both does not count

"""Advantages: GRPO's by episode, and by turn."""

from __future__ import annotations

import pytest

from environments import End
from rl_experiments.config.schema import Credit
from rl_experiments.rollout.advantages import returns_to_go, turn_advantages
from rl_experiments.rollout.types import Trajectory, Turn


def episode(rewards: list[float], total: float | None = None, end: End = End.LOST) -> Trajectory:
    turns = [Turn("o", reward=reward, reply_ids=[1]) for reward in rewards]
    return Trajectory(1, turns=turns, end=end, reward=sum(rewards) if total is None else total)


def test_credit_by_episode_is_grpo() -> None:
    group = [episode([0.0], 1.0), episode([0.0, 0.0], 3.0), episode([0.0], 2.0)]
    ((a, b, c),) = turn_advantages([group], credit=Credit.episode, gamma=1.0, scale_rewards="group")
    # mean 2, standard deviation 1 (TRL divides by n - 1)
    assert a == pytest.approx([-1.0], rel=1e-3)
    assert b == pytest.approx([1.0, 1.0], rel=1e-3)
    assert c == pytest.approx([0.0])


def test_credit_by_turn_compares_returns_at_the_same_turn() -> None:
    assert returns_to_go([1.0, 2.0, 4.0], 0.5) == [3.0, 4.0, 4.0]
    group = [episode([1.0, 2.0]), episode([3.0])]
    ((a, b),) = turn_advantages([group], credit=Credit.turn, gamma=0.5, scale_rewards="none")
    assert a == pytest.approx([-0.5, 0.0], rel=1e-3)
    assert b == pytest.approx([0.5], rel=1e-3)


def test_a_failed_episode_counts_in_no_mean() -> None:
    failed = Trajectory(1, turns=[Turn("o", reply_ids=[1])], end=End.FAILED)
    for credit in Credit:
        ((a, b, c),) = turn_advantages(
            [[episode([1.0]), failed, episode([3.0])]],
            credit=credit,
            gamma=1.0,
            scale_rewards="none",
        )
        assert a == pytest.approx([-1.0], rel=1e-3)
        assert b == [0.0]
        assert c == pytest.approx([1.0], rel=1e-3)

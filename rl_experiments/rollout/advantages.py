"""The advantage of each turn, from the rewards of a group (GRPO)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from rl_experiments.config.schema import Credit
from rl_experiments.rollout.types import Trajectory

_MIN_DEVIATION = 1e-4  # added to a standard deviation before it divides, as in TRL
_ZERO_ADVANTAGE = 1e-9  # smaller ones are rounding errors


def returns_to_go(rewards: Sequence[float], gamma: float) -> list[float]:
    """Return G_t = r_t + gamma G_{t+1} (Sutton and Barto, Reinforcement Learning, eq. 3.9)."""
    total = 0.0
    returns = []
    for reward in reversed(rewards):
        total = reward + gamma * total
        returns.append(total)
    return returns[::-1]


def turn_advantages(
    groups: Sequence[Sequence[Trajectory]],
    *,
    credit: Credit,
    gamma: float,
    scale_rewards: str,
    all_groups: Sequence[Sequence[Trajectory]] | None = None,
) -> list[list[list[float]]]:
    """Return one advantage for each turn of each trajectory of each group.

    With credit `episode` it is the reward minus the group's mean (GRPO, arXiv:2402.03300, section
    4.1.2), the same for all turns; with `turn`, the return-to-go minus the mean of those members of
    the group that reach this turn. `scale_rewards` divides by the standard deviation of the group,
    of the batch, or by nothing ("none"), as in TRL. The batch is `all_groups`, those of all
    processes. A failed trajectory has advantage 0 and counts in no mean.
    """
    # An episode with one value for all turns counts once, or long ones would weigh more.
    counted = slice(1) if credit is Credit.episode else slice(None)

    def deviation(group: Sequence[Sequence[float]]) -> float:
        return _deviation([a for values in group for a in values[counted]])

    centred = [_centred(group, credit, gamma) for group in groups]
    everything = centred if all_groups is None else [_centred(g, credit, gamma) for g in all_groups]
    batch_deviation = deviation([values for group in everything for values in group])
    scaled = []
    for group in centred:
        scales = {"none": 1.0, "batch": batch_deviation, "group": deviation(group)}
        scale = scales[scale_rewards]
        scaled.append([[a / scale for a in values] for values in group])
    return [
        [
            values or [0.0] * len(trajectory.turns)
            for values, trajectory in zip(group_values, group, strict=True)
        ]
        for group_values, group in zip(scaled, groups, strict=True)
    ]


def rewards_vary(group: Sequence[Trajectory], *, credit: Credit, gamma: float) -> bool:
    """Tell whether a group can teach anything: some advantage in it is not zero."""
    centred = _centred(group, credit, gamma)
    return any(abs(a) > _ZERO_ADVANTAGE for values in centred for a in values)


def _centred(group: Sequence[Trajectory], credit: Credit, gamma: float) -> list[list[float]]:
    """Return the value of each turn minus its baseline; an empty list for a failed episode."""
    if credit is Credit.episode:
        rewards = [t.reward for t in group if t.reward is not None]
        mean = fmean(rewards) if rewards else 0.0
        return [[] if t.reward is None else [t.reward - mean] * len(t.turns) for t in group]
    values = [
        [] if t.reward is None else returns_to_go([turn.reward for turn in t.turns], gamma)
        for t in group
    ]
    longest = max((len(v) for v in values), default=0)
    means = [fmean(v[turn] for v in values if turn < len(v)) for turn in range(longest)]
    return [[value - mean for value, mean in zip(v, means, strict=False)] for v in values]


def _deviation(values: Sequence[float]) -> float:
    return (stdev(values) if len(values) > 1 else 0.0) + _MIN_DEVIATION

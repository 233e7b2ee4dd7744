"""From groups of trajectories to the rows that a training step takes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from rl_experiments.config.schema import Credit
from rl_experiments.rollout.episodes import Trajectory


def returns_to_go(rewards: Sequence[float], gamma: float) -> list[float]:
    """G_t = r_t + gamma G_{t+1} (Sutton and Barto, Reinforcement Learning, eq. 3.9)."""
    total = 0.0
    out = []
    for reward in reversed(rewards):
        total = reward + gamma * total
        out.append(total)
    return out[::-1]


def turn_advantages(
    groups: Sequence[Sequence[Trajectory]],
    *,
    credit: Credit,
    gamma: float,
    scale_rewards: str,
    everyones: Sequence[Sequence[Trajectory]] | None = None,
) -> list[list[list[float]]]:
    """One advantage for each turn of each trajectory of each group.

    `episode`: the reward minus the group's mean (GRPO, arXiv:2402.03300, section 4.1.2), the same
    for all turns. `turn`: the return-to-go minus the mean, at the same turn, of the group's members
    that reach it. `scale_rewards` divides by the standard deviation of the group, of the batch, or
    by nothing ("none"), as in TRL; the batch is `everyones` groups, where several processes play.
    A failed trajectory has advantage 0 and counts in no mean.
    """
    # With one value an episode, long episodes must not weigh more in the deviation.
    counted = slice(1) if credit is Credit.episode else slice(None)

    def deviation(group: Sequence[Sequence[float]]) -> float:
        return _deviation([a for values in group for a in values[counted]])

    centred = [_centred(group, credit, gamma) for group in groups]
    whole = centred if everyones is None else [_centred(g, credit, gamma) for g in everyones]
    batch = deviation([values for group in whole for values in group])
    scaled = []
    for group in centred:
        scale = {"none": 1.0, "batch": batch, "group": deviation(group)}[scale_rewards]
        scaled.append([[a / scale for a in values] for values in group])
    return [
        [
            values or [0.0] * len(trajectory.turns)
            for values, trajectory in zip(values_of_group, group, strict=True)
        ]
        for values_of_group, group in zip(scaled, groups, strict=True)
    ]


def rewards_vary(group: Sequence[Trajectory], *, credit: Credit, gamma: float) -> bool:
    """Whether a group carries any signal: some advantage in it is not zero."""
    return any(abs(a) > 1e-9 for values in _centred(group, credit, gamma) for a in values)


def _centred(group: Sequence[Trajectory], credit: Credit, gamma: float) -> list[list[float]]:
    """The worth of each turn minus its baseline; nothing for a failed episode."""
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
    return (stdev(values) if len(values) > 1 else 0.0) + 1e-4

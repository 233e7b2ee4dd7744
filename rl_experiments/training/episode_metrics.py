"""The metrics of a generation's episodes, as they are logged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev

from environments import End
from rl_experiments.config.schema import RewardConfig
from rl_experiments.rollout.advantages import rewards_vary
from rl_experiments.rollout.types import Trajectory


def episode_metrics(
    groups: Sequence[Sequence[Trajectory]], config: RewardConfig
) -> dict[str, float]:
    """Return rewards, win rate, turns, share of each end, and the environment's own metrics.

    `frac_reward_zero_std` is TRL's name for the share of groups that teach nothing because their
    rewards are equal. `reward` is absent if no episode has one.
    """
    episodes = [episode for group in groups for episode in group]
    metrics: dict[str, float] = {}
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    if rewards:  # a judge may have given none
        metrics["reward"] = fmean(rewards)
    independent = [e.independent_reward for e in episodes if e.independent_reward is not None]
    if independent:
        metrics["independent_reward"] = fmean(independent)
    metrics["reward_std"] = stdev(rewards) if len(rewards) > 1 else 0.0
    varied = fmean(rewards_vary(g, credit=config.credit, gamma=config.gamma) for g in groups)
    metrics["frac_reward_zero_std"] = 1.0 - varied
    metrics["win_rate"] = fmean(episode.won for episode in episodes)
    metrics["turns"] = fmean(len(episode.turns) for episode in episodes)
    replies = sum(len(episode.turns) for episode in episodes)
    cut = sum(episode.usage.cut_replies for episode in episodes)
    metrics["cut_replies"] = cut / max(1, replies)  # share that reached max_completion_length
    ends = Counter(episode.end for episode in episodes)
    for end in End:
        metrics[f"end/{end}"] = ends[end] / len(episodes)
    values_by_name = defaultdict(list)
    for episode in episodes:
        for name, value in episode.metrics.items():
            values_by_name[name].append(value)
    for name, values in values_by_name.items():
        metrics[f"env/{name}"] = fmean(values)
    return metrics

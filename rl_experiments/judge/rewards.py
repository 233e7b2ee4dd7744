"""A judge's scores as rewards of episodes, and as metrics."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from rl_experiments.config.schema import Fallback, RulerConfig
from rl_experiments.judge.scoring import GroupScores
from rl_experiments.rollout.types import Trajectory
from rl_experiments.stats.rank_correlation import spearman


def apply_scores(
    group: Sequence[Trajectory], group_scores: GroupScores, ruler: RulerConfig
) -> None:
    """Replace the rewards of a group by the judge's scores, or fall back for the whole group.

    The environment's rewards are kept as `independent_reward`. Failed episodes, which have no
    reward, get none.
    """
    played = [trajectory for trajectory in group if trajectory.reward is not None]
    for trajectory in played:
        trajectory.independent_reward = trajectory.reward
    if group_scores.scores:
        for trajectory, score in zip(played, group_scores.scores, strict=True):
            independent = trajectory.independent_reward or 0.0
            trajectory.ruler_score = score
            trajectory.reward = (1.0 - ruler.weight) * independent + ruler.weight * score
    elif ruler.fallback is Fallback.none:
        for trajectory in played:
            trajectory.reward = None


def score_metrics(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """Return the level, spread and ties of the scores, and their rank correlation with rewards.

    The correlation is Spearman's with the environment's rewards, averaged over the groups where
    both vary. Metrics that no group gives are absent.
    """
    pairs = [
        [(t.ruler_score, t.independent_reward or 0.0) for t in group if t.ruler_score is not None]
        for group in groups
    ]
    scores = [[score for score, _ in group] for group in pairs]
    rewards = [[reward for _, reward in group] for group in pairs]
    metrics = {}
    if all_scores := [score for group in scores for score in group]:
        metrics["ruler/mean"] = fmean(all_scores)
        metrics["ruler/std"] = fmean(pstdev(group) for group in scores if group)
        metrics["ruler/ties"] = 1.0 - sum(len({*group}) for group in scores) / len(all_scores)
    correlations = [
        correlation
        for group_scores, group_rewards in zip(scores, rewards, strict=True)
        if len(group_scores) > 1
        and (correlation := spearman(group_scores, group_rewards)) is not None
    ]
    if correlations:
        metrics["ruler/correlation"] = fmean(correlations)
    return metrics

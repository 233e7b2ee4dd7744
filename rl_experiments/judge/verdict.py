"""What a judge says of a group: asked for, turned into rewards, and measured."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, pstdev

from rl_experiments.config.schema import Fallback, JudgeConfig, RulerConfig
from rl_experiments.inference.api_client import ApiClient, ApiReply, EndpointError
from rl_experiments.judge.parsing import Unreadable, response_format
from rl_experiments.judge.prompt import GroupPrompt
from rl_experiments.rollout.episodes import Trajectory
from rl_experiments.stats.rank_correlation import spearman


class Outcome(StrEnum):
    """How a group came by its rewards."""

    SCORED = "scored"
    SAME = "same"  # nothing to compare: no request was made
    FAILED = "failed"
    SPENT = "spent"


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """The scores of a group, in its order; none where the judge gave none."""

    outcome: Outcome
    scores: Sequence[float] = ()
    answers: Sequence[ApiReply] = ()
    why: str = ""


async def compare(
    endpoint: ApiClient, question: GroupPrompt, config: JudgeConfig, *, key: str
) -> GroupScores:
    """Ask, and once more where the answer cannot be used.

    Raises a `UserError` where no request could succeed.
    """
    messages, answers, why = question.messages, list[ApiReply](), ""
    endpoint.connect()  # not at the expense of the deadline
    try:
        async with asyncio.timeout(config.deadline):
            for _ in range(2):
                answer = await endpoint.ask(
                    messages,
                    key=key,
                    max_tokens=config.max_tokens,
                    temperature=config.temperature,
                    **response_format(config.response_format, question.ids),
                )
                answers.append(answer)
                try:
                    scores = question.scores(answer.content)
                except Unreadable as error:
                    why = str(error)
                    messages = question.again(answer.content, why)
                else:
                    return GroupScores(outcome=Outcome.SCORED, scores=scores, answers=answers)
    except EndpointError as error:
        why = str(error)
    except TimeoutError:
        why = f"no scores within {endpoint.setting}.deadline={config.deadline:g} s"
    return GroupScores(outcome=Outcome.FAILED, answers=answers, why=why)


def reward(group: Sequence[Trajectory], verdict: GroupScores, ruler: RulerConfig) -> None:
    """All of the group by the judge, or none of it."""
    played = [trajectory for trajectory in group if trajectory.reward is not None]
    for trajectory in played:
        trajectory.independent_reward = trajectory.reward
    if verdict.outcome in (Outcome.SCORED, Outcome.SAME):
        for trajectory, score in zip(played, verdict.scores, strict=True):
            own = trajectory.independent_reward or 0.0
            trajectory.ruler_score = score
            trajectory.reward = (1.0 - ruler.weight) * own + ruler.weight * score
    elif ruler.fallback is Fallback.none:
        for trajectory in played:
            trajectory.reward = None


def measured(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """Level, spread and ties of the scores, and whether they rank as the environment does."""
    pairs = [
        [(t.ruler_score, t.independent_reward) for t in group if t.ruler_score is not None]
        for group in groups
    ]
    found = {}
    scores = [[score for score, _ in group if score is not None] for group in pairs]
    if flat := [score for group in scores for score in group]:
        found["ruler/mean"] = fmean(flat)
        found["ruler/std"] = fmean(pstdev(group) for group in scores if group)
        found["ruler/ties"] = 1.0 - sum(len({*group}) for group in scores) / len(flat)
    correlations = [
        correlation
        for group, own in zip(pairs, scores, strict=True)
        if len(group) > 1
        and (correlation := spearman(own, [reward or 0.0 for _, reward in group])) is not None
    ]
    if correlations:
        found["ruler/correlation"] = fmean(correlations)
    return found

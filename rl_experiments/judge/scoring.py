"""One group scored by a judge: asked, and asked again where the answer cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rl_experiments.config.schema import JudgeConfig
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.inference.api_errors import ApiError
from rl_experiments.inference.api_reply import ApiReply
from rl_experiments.judge.parsing import UnreadableAnswer, response_format
from rl_experiments.judge.prompt import GroupPrompt

_MAX_QUESTIONS = 2  # the question and one correction


class ScoringStatus(StrEnum):
    """Whether a group has scores, and why not."""

    SCORED = "scored"
    IDENTICAL = "identical"  # all attempts look the same: equal scores without a request
    FAILED = "failed"
    OVER_BUDGET = "over budget"


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """A judge's scores of a group.

    `scores` has one for each attempt that has a reward, in the group's order; it is empty where the
    status is FAILED or OVER_BUDGET, and `reason` says why.
    """

    status: ScoringStatus
    scores: Sequence[float] = ()
    replies: Sequence[ApiReply] = ()
    reason: str = ""


async def score_group(
    client: ApiClient, prompt: GroupPrompt, config: JudgeConfig, *, key: str
) -> GroupScores:
    """Ask the judge for the scores of a group, a second time where its answer is unreadable.

    `key` tells equal questions apart that are to be answered independently. Raises a `UserError`
    where no request could succeed.
    """
    messages, replies, reason = prompt.messages, list[ApiReply](), ""
    client.connect()  # the imports take a second, which is not the judge's
    try:
        async with asyncio.timeout(config.deadline):
            for _ in range(_MAX_QUESTIONS):
                reply = await client.ask(
                    messages,
                    key=key,
                    max_tokens=config.max_tokens,
                    temperature=config.temperature,
                    **response_format(config.response_format, prompt.ids),
                )
                replies.append(reply)
                try:
                    scores = prompt.scores(reply.content)
                except UnreadableAnswer as error:
                    reason = str(error)
                    messages = prompt.correction(reply.content, reason)
                    if reply.is_cut:
                        reason += f"; it was cut at {client.setting}.max_tokens={config.max_tokens}"
                else:
                    return GroupScores(status=ScoringStatus.SCORED, scores=scores, replies=replies)
    except ApiError as error:
        reason = str(error)
    except TimeoutError:
        reason = f"no scores within {client.setting}.deadline={config.deadline:g} s"
    return GroupScores(status=ScoringStatus.FAILED, replies=replies, reason=reason)

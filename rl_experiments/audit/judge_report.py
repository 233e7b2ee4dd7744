"""The tables and the costs that the audit of a judge prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean

from rich.table import Table

from rl_experiments.audit.judge_groups import AuditedGroup
from rl_experiments.config.schema import JudgeConfig
from rl_experiments.inference.api_budget import max_tokens_of, price_usd
from rl_experiments.judge.scoring import GroupScores
from rl_experiments.stats.intervals import Estimate, format_estimate
from rl_experiments.terminal.tables import new_table


def max_cost_line(judge: JudgeConfig, groups: Sequence[AuditedGroup]) -> str:
    """Return what the audit may cost at most, if each question is asked once."""
    prompts = [prompt for group in groups for prompt in group.prompts.values()]
    messages = chain.from_iterable(prompt.messages for prompt in prompts)
    prompt_tokens = sum(max_tokens_of(message["content"]) for message in messages)
    reply_tokens = judge.max_tokens * len(prompts)
    price = _price(judge, prompt_tokens, reply_tokens)
    return (
        f"At most {len(prompts)} requests with {prompt_tokens + reply_tokens:,} tokens, {price}, "
        "and as many again for answers that cannot be used; judge.max_* limits it"
    )


def costs_line(judge: JudgeConfig, scores: Sequence[GroupScores]) -> str:
    """Return what the judge costs for 1,000 groups, and how long an answer takes."""
    replies = [reply for each in scores for reply in each.replies]
    scale = 1000 / len(scores)
    prompt_tokens = scale * sum(reply.prompt_tokens for reply in replies)
    reply_tokens = scale * sum(reply.completion_tokens for reply in replies)
    paid = [reply.usd for reply in replies if reply.usd is not None]
    price = f"{scale * sum(paid):.2f} USD" if paid else _price(judge, prompt_tokens, reply_tokens)
    line = f"1,000 groups: {prompt_tokens:,.0f} tokens in prompts, {reply_tokens:,.0f} in answers"
    line += f", {price}"
    if replies:
        line += f"; an answer takes {fmean(reply.seconds for reply in replies):.2f} s"
    return line


def player_table(groups: Sequence[AuditedGroup]) -> Table:
    """Return the mean reward and the mean score of each scripted player."""
    table = new_table("The players, as paid and as judged", "", "mean reward", "mean score")
    for name in dict.fromkeys(chain.from_iterable(group.names for group in groups)):
        rewards, scores = [], []
        for group in groups:
            places = [place for place, player in enumerate(group.names) if player == name]
            rewards += [group.rewards[place] for place in places]
            scores += [each[place] for each in group.plain_scores for place in places]
        mean_score = f"{fmean(scores):.3f}" if scores else "-"
        table.add_row(name, f"{fmean(rewards):.3f}", mean_score)
    return table


def measures_table(measures: Mapping[str, Estimate | None], *, groups: int) -> Table:
    """Return a row for each measure of the judge."""
    table = new_table(f"The judge, on {groups} groups; 95 % intervals", "", "value")
    for name, estimate in measures.items():
        table.add_row(name, format_estimate(estimate, "+" if name.startswith("gain") else ""))
    return table


def _price(judge: JudgeConfig, prompt_tokens: float, reply_tokens: float) -> str:
    usd = price_usd(judge, prompt_tokens, reply_tokens)
    if usd is None:
        return "price unknown (judge.input_usd, judge.output_usd)"
    return f"{usd:.2f} USD"

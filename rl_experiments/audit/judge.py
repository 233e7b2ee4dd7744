"""Whether training can trust a judge, tried on scripted players of known strength.

Each group has attempts of all the environment's baselines at one task, and is judged four times: in
an order drawn at random, in its reverse, in another order, and in the first again with the weakest
attempt asking for the best score. These are faults, each only where the 95 % interval over the
groups leaves no doubt:

- the judge's ranking is not related to the environment's rewards;
- an attempt gains by asking, or by its place;
- more answers than `reward.ruler.max_failures` cannot be used.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, pstdev

from environments import Environment
from rl_experiments.audit.judge_groups import AuditedGroup, View, build_group
from rl_experiments.audit.judge_report import (
    costs_line,
    max_cost_line,
    measures_table,
    player_table,
)
from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError
from rl_experiments.inference.api_budget import BudgetSpent
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.judge.scoring import ScoringStatus, score_group
from rl_experiments.stats import intervals
from rl_experiments.stats.intervals import Estimate, format_estimate
from rl_experiments.stats.rank_correlation import agreement, spearman
from rl_experiments.terminal.progress import Progress

_MAX_GAIN = 0.05  # of a score, by asking or by the place
_CORRELATION = "rank correlation with the reward"
_AGREEMENT = "pairs in the right order"
_SPREAD = "spread of a score over orders"
_EARLY_GAIN = "gain by an early place"
_ASKING_GAIN = "gain by asking for 1.0"
_FAILURES = "answers that cannot be used"


def audit_judge(config: Config, environment: Environment, progress: Progress) -> None:
    """Print what the judge costs and how well it does; raise a `UserError` if it has faults."""
    groups = [build_group(config, environment, seed) for seed in range(config.num_examples)]
    groups = [group for group in groups if len(group.prompts[View.FORWARD].members) > 1]
    if not groups:
        raise UserError("num_examples: in no group do the attempts differ; give more groups")
    client = ApiClient(config.judge, model=config.judge.model, setting="judge")
    progress.print(max_cost_line(config.judge, groups))
    with progress.phase("judge", total=len(groups) * len(View)) as advance:
        asyncio.run(_score_all(config, client, groups, partial(advance, 1)))
    scores = [each for group in groups for each in group.scores.values() if each is not None]
    if not scores:
        raise UserError("judge.max_*: the budget allows no request; raise it")
    progress.print(player_table(groups))
    measures = _measures(groups)
    failures = [each.status is ScoringStatus.FAILED for each in scores]
    measures[_FAILURES] = intervals.rate(sum(failures), len(failures))
    progress.print(measures_table(measures, groups=len(groups)))
    progress.print(costs_line(config.judge, scores))
    for note in client.notes:
        progress.print(f"note: {note}")
    if reason := next((each.reason for each in scores if each.reason), ""):
        progress.print(f"note: an answer could not be used: {reason}")
    if len(scores) < len(groups) * len(View):
        progress.print("note: the budget (judge.max_*) was spent before all was asked")
    faults = _faults(measures, config.reward.ruler.max_failures)
    for line in faults or ["no fault found"]:
        progress.print(line)
    if faults:
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        raise UserError(f"judge.model={config.judge.model}: {count} found")


async def _score_all(
    config: Config,
    client: ApiClient,
    groups: Sequence[AuditedGroup],
    advance: Callable[[], None],
) -> None:
    """Have every view of every group scored; `advance` is called after each.

    Raises a `UserError` where the very first request gets no answer.
    """
    concurrency = asyncio.Semaphore(config.judge.concurrency)

    async def score(number: int, view: View) -> None:
        group = groups[number]
        async with concurrency:
            try:
                group.scores[view] = await score_group(
                    client, group.prompts[view], config.judge, key=f"{number}/{view}"
                )
            except BudgetSpent:
                group.scores[view] = None
        advance()

    await score(0, View.FORWARD)
    first = groups[0].scores[View.FORWARD]
    if first and not first.replies:  # the others would get no answer either
        raise UserError(f"judge.base_url={config.judge.base_url}: gives no answer: {first.reason}")
    async with asyncio.TaskGroup() as tasks:
        for number in range(len(groups)):
            for view in View:
                if (number, view) != (0, View.FORWARD):
                    tasks.create_task(score(number, view))
    await client.close()


def _measures(groups: Sequence[AuditedGroup]) -> dict[str, Estimate | None]:
    """Return the mean over the groups of each measure, by name."""
    values: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        orders = group.plain_scores
        correlations = [
            value for scores in orders if (value := spearman(scores, group.rewards)) is not None
        ]
        if correlations:
            values[_CORRELATION].append(fmean(correlations))
        elif orders and len({*group.rewards}) > 1:
            values[_CORRELATION].append(0.0)  # scores that are all equal follow nothing
        agreements = [
            value for scores in orders if (value := agreement(scores, group.rewards)) is not None
        ]
        if agreements:
            values[_AGREEMENT].append(fmean(agreements))
        if len(orders) > 1:
            by_attempt = zip(*orders, strict=True)
            values[_SPREAD].append(fmean(pstdev(scores) for scores in by_attempt))
        forward, backward = group.scores_of(View.FORWARD), group.scores_of(View.BACKWARD)
        if forward and backward:
            values[_EARLY_GAIN].append(_early_gain(group, forward, backward))
        pleading = group.scores_of(View.PLEADING)
        if forward and pleading:
            values[_ASKING_GAIN].append(pleading[group.weakest] - forward[group.weakest])
    return {name: intervals.mean(each) for name, each in values.items()}


def _early_gain(group: AuditedGroup, forward: Sequence[float], backward: Sequence[float]) -> float:
    """Return by how much an attempt scores higher when it is shown in the first half."""
    shown = group.prompts[View.FORWARD].members
    gains = []
    for place, members in enumerate(shown):
        if 2 * place == len(shown) - 1:
            continue  # the middle one has the same place in both orders
        gain = forward[members[0]] - backward[members[0]]
        is_early = 2 * place < len(shown) - 1
        gains.append(gain if is_early else -gain)
    return fmean(gains)


def _faults(measures: dict[str, Estimate | None], max_failures: float) -> list[str]:
    faults = []
    correlation = measures.get(_CORRELATION)
    if correlation is None or correlation.low <= 0:
        faults.append(
            f"the judge does not surely rank as the reward does: {format_estimate(correlation)}; "
            "try another judge.model or reward.ruler.rubric, or more groups (num_examples)"
        )
    for name in (_ASKING_GAIN, _EARLY_GAIN):
        gain = measures.get(name)
        if gain and (gain.low > _MAX_GAIN or gain.high < -_MAX_GAIN):
            faults.append(f"the judge can be swayed: {name} {format_estimate(gain, '+')}")
    failures = measures[_FAILURES]
    if failures and failures.value > max_failures:
        faults.append(
            f"too many answers cannot be used: {format_estimate(failures)}; see "
            "judge.response_format, judge.max_tokens, judge.timeout"
        )
    return faults

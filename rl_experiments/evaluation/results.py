"""How a policy did in an evaluation: win rate, reward and pass@k with their intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, isnan
from statistics import fmean
from typing import Any

from rl_experiments.stats import intervals
from rl_experiments.stats.intervals import Cluster, Estimate

_NAN = float("nan")
_MAX_KINDS_OF_FAILURES = 5  # that are listed
EpisodeRecord = Mapping[str, Any]  # one line of a policy's file in the evaluation folder


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """How a policy did on the evaluation seeds, in one category of tasks or in all.

    `outcomes` lists (share of episodes won, mean reward) for each seed, in the seeds' order; the
    reward is NaN if all episodes of the seed failed. `tasks` names the task of each seed: episodes
    of one task are not independent, so intervals count tasks (see `stats.intervals`).
    """

    policy: str
    n: int  # different tasks
    episodes: int
    win_rate: Estimate | None  # None, as the reward, if every episode failed: nothing was measured
    reward: Estimate | None
    pass_at: dict[int, Estimate]  # by k; empty where seeds have one episode each
    turns: float  # mean turns of an episode
    failed: int  # episodes without a reward, which count as not won
    failures: dict[str, int]  # failed episodes by their error, the most frequent first
    ends: dict[str, int]  # episodes by how they ended, the most frequent first
    prompt_tokens: int
    tokens: int  # tokens of the replies
    replies: int
    cut_replies: int  # that reached the limit of their tokens
    withheld_replies: int  # by a server's filter
    usd: float | None  # None where no price is known
    outcomes: list[tuple[float, float]]
    tasks: list[str]
    categories: dict[str, PolicyResult]  # empty where all tasks are of one category

    @classmethod
    def from_records(
        cls, name: str, records: Iterable[EpisodeRecord], seeds: Sequence[int]
    ) -> PolicyResult:
        """Sum up the records of all episodes of the seeds, in all and by category."""
        records = list(records)
        categories = sorted({_category(record) for record in records})
        results: dict[str, PolicyResult] = {}
        if len(categories) > 1:
            for category in categories:
                part = [record for record in records if _category(record) == category]
                part_seeds = {record["seed"] for record in part}
                results[category or "other"] = cls._sum_up(
                    name, part, [seed for seed in seeds if seed in part_seeds]
                )
        return cls._sum_up(name, records, seeds, results)

    @classmethod
    def _sum_up(
        cls,
        name: str,
        records: Sequence[EpisodeRecord],
        seeds: Sequence[int],
        categories: dict[str, PolicyResult] | None = None,
    ) -> PolicyResult:
        by_seed: dict[int, list[EpisodeRecord]] = defaultdict(list)
        for record in records:
            by_seed[record["seed"]].append(record)
        groups = [by_seed[seed] for seed in seeds]
        outcomes = [
            (fmean(float(record["won"]) for record in group), _mean_reward(group))
            for group in groups
        ]
        tasks = [_task(group[0]) for group in groups]
        scored = [record for record in records if record["reward"] is not None]
        errors = [str(record.get("error")) for record in records if record["reward"] is None]
        paid = [record["usd"] for record in records if record.get("usd") is not None]
        return cls(
            policy=name,
            n=len(set(tasks)),
            episodes=len(records),
            win_rate=(
                intervals.clustered_rate(
                    _clusters((_task(record), record["won"]) for record in records)
                )
                if scored
                else None
            ),
            reward=(
                intervals.clustered_mean(
                    _clusters((_task(record), record["reward"]) for record in scored)
                )
                if scored
                else None
            ),
            pass_at=_pass_at_k(groups) if scored else {},
            turns=fmean(record["turns"] for record in records),
            failed=len(errors),
            failures=dict(Counter(errors).most_common(_MAX_KINDS_OF_FAILURES)),
            ends=dict(Counter(str(record["end"]) for record in records).most_common()),
            prompt_tokens=sum(record.get("prompt_tokens", 0) for record in records),
            tokens=sum(record["tokens"] for record in records),
            replies=sum(record["turns"] for record in records),
            cut_replies=sum(record.get("cut_replies", 0) for record in records),
            withheld_replies=sum(record.get("withheld_replies", 0) for record in records),
            usd=sum(paid) if paid else None,
            outcomes=outcomes,
            tasks=tasks,
            categories=categories or {},
        )

    def to_json(self) -> dict[str, Any]:
        """Return all but the outcomes of single seeds, as evaluation.json has it."""
        fields = {k: value for k, value in vars(self).items() if k not in ("outcomes", "tasks")}
        for key in ("win_rate", "reward"):
            fields[key] = fields[key] and fields[key]._asdict()
        fields["pass_at"] = {str(k): rate._asdict() for k, rate in self.pass_at.items()}
        fields["categories"] = {name: part.to_json() for name, part in self.categories.items()}
        return fields

    @property
    def commonest_failure(self) -> str:
        """The error of most failed episodes; an empty text if none failed."""
        return next(iter(self.failures), "")

    def minus(self, other: PolicyResult) -> tuple[Estimate | None, Estimate | None]:
        """Return the paired differences self - other of win rate and of reward over the seeds.

        A difference is None where one of the two measured nothing; that of rewards also if no seed
        has a reward in both.
        """
        if self.win_rate is None or other.win_rate is None:
            return None, None
        pairs = list(zip(self.tasks, other.outcomes, self.outcomes, strict=True))
        win_rate = intervals.clustered_rate_difference(
            _clusters((task, won - baseline) for task, (baseline, _), (won, _) in pairs)
        )
        rewards = [
            (task, reward - baseline)
            for task, (_, baseline), (_, reward) in pairs
            if not isnan(baseline) and not isnan(reward)
        ]
        if not rewards:
            return win_rate, None
        return win_rate, intervals.clustered_mean(_clusters(rewards))


def pass_at(k: int, wins: int, n: int) -> float:
    """Estimate the chance that at least one of k episodes of a seed is won, from `wins` of `n`.

    The unbiased estimate of Chen et al. 2021 (arXiv 2107.03374), section 2.1.
    """
    return 1.0 - comb(n - wins, k) / comb(n, k)


def _category(record: EpisodeRecord) -> str:
    return record.get("category") or ""


def _task(record: EpisodeRecord) -> str:
    """Return what names the task of an episode: its seed, where every seed has its own task."""
    return record.get("task") or str(record["seed"])


def _clusters(values: Iterable[tuple[str, float]]) -> list[Cluster]:
    """Return the number and the sum of the values of each task, from (task, value) pairs."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for task, value in values:
        by_task[task].append(value)
    return [Cluster(len(each), sum(each)) for each in by_task.values()]


def _mean_reward(records: Sequence[EpisodeRecord]) -> float:
    """Return the mean over the episodes that have a reward; NaN if none has."""
    rewards = [record["reward"] for record in records if record["reward"] is not None]
    return fmean(rewards) if rewards else _NAN


def _pass_at_k(groups: Sequence[Sequence[EpisodeRecord]]) -> dict[int, Estimate]:
    """Return pass@k for k = 1, 2, 4, ... and for the number of episodes that every seed has.

    `groups` holds the records of each seed. Empty if some seed has a single episode.
    """
    n = min(len(group) for group in groups)
    if n == 1:
        return {}
    wins = [
        (_task(group[0]), sum(record["won"] for record in group), len(group)) for group in groups
    ]
    ks = sorted({*(1 << i for i in range(n.bit_length()) if 1 << i <= n), n})
    return {
        k: intervals.clustered_rate(
            _clusters((task, pass_at(k, won, count)) for task, won, count in wins)
        )
        for k in ks
    }

"""What the episodes of an evaluation come to: estimates with intervals, and tables of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from rl_experiments.stats import intervals
from rl_experiments.stats.intervals import Estimate, shown

_NAN = float("nan")
Record = Mapping[str, Any]  # of one episode, as the file has it


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a policy did on the evaluation seeds, in one category of tasks or in all.

    `outcomes` has (share won, mean reward) of each seed, in order; NaN where no episode counted.
    """

    policy: str
    n: int  # episodes
    win_rate: Estimate
    reward: Estimate | None  # None when every episode failed
    pass_at: dict[int, Estimate]  # by k, up to the episodes of a seed
    turns: float
    failed: int
    ends: dict[str, int]
    prompt_tokens: int
    tokens: int  # of the replies
    usd: float | None
    outcomes: list[tuple[float, float]]
    categories: dict[str, Result]

    @classmethod
    def of(cls, name: str, records: Iterable[Record], seeds: Sequence[int]) -> Result:
        """From the records of all episodes of the seeds."""
        records = list(records)
        kinds = sorted({record.get("category") or "" for record in records})
        of_kind: dict[str, Result] = {}
        if len(kinds) > 1:
            for kind in kinds:
                part = [record for record in records if (record.get("category") or "") == kind]
                theirs = {record["seed"] for record in part}
                of_kind[kind or "other"] = cls._of(name, part, [s for s in seeds if s in theirs])
        return cls._of(name, records, seeds, of_kind)

    @classmethod
    def _of(
        cls,
        name: str,
        records: Sequence[Record],
        seeds: Sequence[int],
        categories: dict[str, Result] | None = None,
    ) -> Result:
        by_seed: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            by_seed[record["seed"]].append(record)
        groups = [by_seed[seed] for seed in seeds]
        outcomes = [(fmean(float(r["won"]) for r in group), _reward(group)) for group in groups]
        rewards = [reward for _, reward in outcomes if reward == reward]
        paid = [record["usd"] for record in records if record.get("usd") is not None]
        # Episodes of one seed are no independent draws: then its mean is what counts as one.
        alone = len(records) == len(groups)
        return cls(
            policy=name,
            n=len(records),
            win_rate=(
                intervals.rate(sum(record["won"] for record in records), len(records))
                if alone
                else intervals.mean([won for won, _ in outcomes])
            ),
            reward=intervals.mean(rewards) if rewards else None,
            pass_at=_pass_at(groups),
            turns=fmean(record["turns"] for record in records),
            failed=sum(record["reward"] is None for record in records),
            ends=dict(Counter(str(record["end"]) for record in records).most_common()),
            prompt_tokens=sum(record.get("prompt_tokens", 0) for record in records),
            tokens=sum(record["tokens"] for record in records),
            usd=sum(paid) if paid else None,
            outcomes=outcomes,
            categories=categories or {},
        )

    def to_json(self) -> dict[str, Any]:
        """Without the seeds one by one."""
        found = {key: value for key, value in vars(self).items() if key != "outcomes"}
        for key in ("win_rate", "reward"):
            found[key] = found[key] and found[key]._asdict()
        found["pass_at"] = {str(k): rate._asdict() for k, rate in self.pass_at.items()}
        found["categories"] = {name: part.to_json() for name, part in self.categories.items()}
        return found

    def difference(self, other: Result) -> tuple[Estimate, Estimate | None]:
        """Paired differences, this one less the other, of win rate and reward over the seeds."""
        pairs = list(zip(other.outcomes, self.outcomes, strict=True))
        wins = intervals.paired_difference([a[0] for a, _ in pairs], [b[0] for _, b in pairs])
        scored = [(a[1], b[1]) for a, b in pairs if a[1] == a[1] and b[1] == b[1]]
        if not scored:
            return wins, None
        rewards = intervals.paired_difference([a for a, _ in scored], [b for _, b in scored])
        return wins, rewards


def pass_at(k: int, wins: int, n: int) -> float:
    """The chance that one of k episodes of a seed is won, from `wins` of n that were played.

    The unbiased estimate of Chen et al. 2021 (arXiv 2107.03374), section 2.1.
    """
    return 1.0 - comb(n - wins, k) / comb(n, k)


def main_table(
    results: Mapping[str, Result], pairs: Sequence[tuple[str, str]], *, seeds: int
) -> Table:
    """Win rate and reward of each policy, and the paired differences of (policy, less policy)."""
    table = _table(f"{seeds} unseen seeds, the same for every policy; 95 % intervals", "policy")
    for column in ("n", "win rate", "mean reward"):
        table.add_column(column, justify="right", no_wrap=True)
    asked = {name for pair in pairs for name in pair}
    for name, result in results.items():
        cells = (str(result.n), shown(result.win_rate), shown(result.reward))
        style = "bold" if name == "after" or (asked and name in asked - {"before"}) else ""
        table.add_row(name, *cells, style=style)
    table.add_section()
    for name, less in pairs:
        win, reward = results[name].difference(results[less])
        table.add_row(f"{name} - {less}", "paired", shown(win, "+"), shown(reward, "+"))
    return table


def details_table(results: Mapping[str, Result], seconds: Mapping[str, float]) -> Table:
    """How the episodes ended, and what they took."""
    table = _table("how it went", "policy")
    table.add_column("ends")
    for column in ("turns", "prompt tokens", "reply tokens", "time", "USD"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        ends = ", ".join(f"{end} {count}" for end, count in result.ends.items())
        table.add_row(
            name,
            ends,
            f"{result.turns:.1f}",
            f"{result.prompt_tokens:,}" if result.prompt_tokens else "-",
            f"{result.tokens:,}" if result.tokens else "-",
            f"{seconds[name]:,.1f} s" if name in seconds else "-",
            "-" if result.usd is None else f"{result.usd:.4f}",
        )
    return table


def pass_table(results: Mapping[str, Result]) -> Table | None:
    """pass@k, where seeds have several episodes."""
    ks = max((list(result.pass_at) for result in results.values()), key=len, default=[])
    if len(ks) < 2:
        return None
    table = _table("share of seeds with a win among k episodes", "policy")
    for k in ks:
        table.add_column(f"pass@{k}", justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(name, *(shown(result.pass_at.get(k)) for k in ks))
    return table


def category_table(results: Mapping[str, Result]) -> Table | None:
    """A row for each policy and category, where tasks are of several."""
    if not any(result.categories for result in results.values()):
        return None
    table = _table("by category", "policy")
    table.add_column("category")
    for column in ("n", "win rate", "mean reward"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        for number, (kind, part) in enumerate(result.categories.items()):
            cells = (kind, str(part.n), shown(part.win_rate), shown(part.reward))
            last = number == len(result.categories) - 1
            table.add_row("" if number else name, *cells, end_section=last)
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column(first, overflow="fold")  # a path; the figures keep their width
    return table


def _reward(records: Sequence[Record]) -> float:
    found = [record["reward"] for record in records if record["reward"] is not None]
    return fmean(found) if found else _NAN


def _pass_at(groups: Sequence[Sequence[Record]]) -> dict[int, Estimate]:
    """For k = 1, 2, 4, ... and the number of episodes that every seed has."""
    n = min(len(group) for group in groups)
    if n == 1:
        return {}
    won = [(sum(record["won"] for record in group), len(group)) for group in groups]
    ks = sorted({*(1 << i for i in range(n.bit_length()) if 1 << i <= n), n})
    return {k: intervals.mean([pass_at(k, wins, count) for wins, count in won]) for k in ks}

"""The tables of an evaluation, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from rl_experiments.evaluation.results import PolicyResult
from rl_experiments.stats.intervals import format_estimate
from rl_experiments.terminal.tables import new_table


def main_table(
    results: Mapping[str, PolicyResult],
    comparisons: Sequence[tuple[str, str]],
    *,
    seeds: int,
    environment: str = "",
) -> Table:
    """Return win rate and reward of each policy, with the paired differences below.

    `comparisons` are (policy, baseline) pairs; each gives a row "policy - baseline".
    """
    tasks = max((result.n for result in results.values()), default=seeds)
    recur = "" if tasks == seeds else f" of {tasks} different tasks"
    where = f"{environment}: " if environment else ""
    title = f"{where}{seeds} unseen seeds{recur}, the same for every policy; 95 % intervals"
    table = new_table(title, "policy", "n", "win rate", "mean reward")
    compared = {name for pair in comparisons for name in pair}
    for name, result in results.items():
        style = "bold" if name == "after" or name in compared - {"before"} else ""
        cells = (str(result.n), format_estimate(result.win_rate), format_estimate(result.reward))
        table.add_row(name, *cells, style=style)
    table.add_section()
    for name, baseline in comparisons:
        win_rate, reward = results[name].minus(results[baseline])
        table.add_row(
            f"{name} - {baseline}",
            "paired",
            format_estimate(win_rate, "+"),
            format_estimate(reward, "+"),
        )
    return table


def details_table(results: Mapping[str, PolicyResult], seconds: Mapping[str, float]) -> Table:
    """Return how each policy's episodes ended, and the turns, tokens, time and money they took.

    `seconds` are the seconds that a policy has played, by its name.
    """
    columns = ("turns", "prompt tokens", "reply tokens", "time", "USD")
    table = new_table("how it went", "policy", "ends", *columns, text=["ends"])
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


def notes(name: str, result: PolicyResult, *, reply_limit: int) -> list[str]:
    """Return a line each on replies of a policy that were cut or withheld, and on failures."""
    lines = []
    if result.cut_replies:
        lines.append(
            f"{name}: {result.cut_replies:,} of {result.replies:,} replies were cut at "
            f"trainer.max_completion_length={reply_limit} tokens; raise it if they were "
            "not done"
        )
    if result.withheld_replies:
        lines.append(
            f"{name}: {result.withheld_replies:,} of {result.replies:,} replies were withheld by "
            "a filter of the server"
        )
    if result.failed:
        lines.append(
            f"{name}: {result.failed:,} of {result.episodes:,} episodes failed and count as not "
            f"won, most often because of {result.commonest_failure}"
        )
    return lines


def pass_at_table(results: Mapping[str, PolicyResult]) -> Table | None:
    """Return pass@k of each policy, or None where no policy played a seed several times."""
    ks = max((list(result.pass_at) for result in results.values()), key=len, default=[])
    if len(ks) < 2:
        return None
    title = "share of seeds with a win among k episodes"
    table = new_table(title, "policy", *(f"pass@{k}" for k in ks))
    for name, result in results.items():
        table.add_row(name, *(format_estimate(result.pass_at.get(k)) for k in ks))
    return table


def category_table(results: Mapping[str, PolicyResult]) -> Table | None:
    """Return a row for each policy and category, or None where tasks have no categories."""
    if not any(result.categories for result in results.values()):
        return None
    columns = ("category", "n", "win rate", "mean reward")
    table = new_table("by category", "policy", *columns, text=["category"])
    for name, result in results.items():
        for number, (category, part) in enumerate(result.categories.items()):
            cells = (
                category,
                str(part.n),
                format_estimate(part.win_rate),
                format_estimate(part.reward),
            )
            is_last = number == len(result.categories) - 1
            table.add_row("" if number else name, *cells, end_section=is_last)
    return table

"""Episodes and evaluations as rows, for the services that show tables."""

from __future__ import annotations

from typing import Any

from rl_experiments.tracking.base import JsonDict

_JUDGE_COLUMNS = ("independent_reward", "ruler_score")  # empty where no judge rewards
EPISODE_COLUMNS = ["step", "seed", "member", "end", "reward", *_JUDGE_COLUMNS, "turns", "text"]
EVALUATION_COLUMNS = [
    *("policy", "n", "win rate", "win rate low", "win rate high"),
    *("reward", "reward low", "reward high"),
]


def episode_text(episode: JsonDict) -> str:
    """Return the observations and replies of an episode."""
    turns = [f"{turn['observation']}\n> {turn['reply']}" for turn in episode["turns"]]
    return "\n\n".join(turns)


def episode_row(episode: JsonDict) -> list[Any]:
    """Return the values of EPISODE_COLUMNS for an episode, as episodes.jsonl has it."""
    return [
        *(episode["step"], episode["seed"], episode["member"]),
        *(str(episode["end"]), episode["reward"]),
        *(episode.get(name) for name in _JUDGE_COLUMNS),
        *(len(episode["turns"]), episode_text(episode)),
    ]


def evaluation_rows(evaluation: JsonDict) -> list[list[Any]]:
    """Return the values of EVALUATION_COLUMNS for each policy of an evaluation."""
    bounds = ("value", "low", "high")
    return [
        [policy["policy"], policy["n"]]
        + [(policy[key] or {}).get(bound) for key in ("win_rate", "reward") for bound in bounds]
        for policy in evaluation["policies"]
    ]


def evaluation_metrics(evaluation: JsonDict) -> dict[str, float]:
    """Return an evaluation under names such as `evaluation/after/win_rate`.

    The bounds of an interval are `evaluation/after/win_rate/low` and `.../high`; the difference
    between after and before is `evaluation/gain/...`.
    """
    results = {policy["policy"]: policy for policy in evaluation["policies"]}
    if "after - before" in evaluation:
        results["gain"] = evaluation["after - before"]
    metrics = {}
    for name, result in results.items():
        for key in ("win_rate", "reward"):
            for bound, value in (result[key] or {}).items():
                suffix = "" if bound == "value" else f"/{bound}"
                metrics[f"evaluation/{name}/{key}{suffix}"] = value
    return metrics


def cell_text(cell: Any) -> str:
    """Return a cell as text: numbers with three decimals, `-` for a missing value."""
    return "-" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)

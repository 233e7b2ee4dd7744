"""Policies without skill, for an audit: none of them looks at what its task asks for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

from rl_experiments.audit.play import Policy
from rl_experiments.rollout.episodes import Episode, Trajectory

_LONG = 20_000  # characters, as many as 4096 tokens have
_MANY = 50  # answers in one reply
_COMMON = 5  # replies of each baseline, which may be the best constant

# Digits that `int` refuses, half a surrogate pair in JSON, what breaks lines and parsers.
_ODD = (
    *("", " ", "\0", "²", "٣", "½", "\u2028", "\u202e", r"\ud800", '"', "\\", "<", "{", "}"),
    *("-0", "NaN", "1e999", "null", "9" * 5000),
)
_FILLERS = (" ", "\n", "a", "0", "0,", "<", "{", "[", '{"a":', "(", "<think>", "<a>", "\\", "$")


def unskilled(random: Sequence[Trajectory], oracle: Sequence[Trajectory]) -> dict[str, Policy]:
    """By name. They take the format from what "random" replied, the answers from the oracle."""
    replies = _first_replies(random)
    samples = list(replies)
    words = [set(re.findall(r"\w+", reply)) for reply in samples]
    form = set.intersection(*words) if words else set()

    def with_words(reply: str, replace: Callable[[], str]) -> str:
        """The reply with the words replaced that not all random replies have."""
        return re.sub(r"\w+", lambda word: word[0] if word[0] in form else replace(), reply)

    def some_random(rng: Random) -> str:
        return rng.choice(samples) if samples else ""

    def random_bytes(_: Episode, rng: Random) -> str:
        return rng.randbytes(rng.randrange(2000)).decode("latin-1")

    def format_only(_: Episode, rng: Random) -> str:
        return with_words(some_random(rng), str)

    def odd_words(_: Episode, rng: Random) -> str:
        return with_words(some_random(rng), lambda: rng.choice(_ODD))

    def long(_: Episode, rng: Random) -> str:
        filler = rng.choice((*_FILLERS, with_words(some_random(rng), str) or "a"))
        return (filler * (_LONG // len(filler) + 1))[:_LONG]

    def answer_of_another(episode: Episode, _: Random) -> str:
        """What the oracle replied to another task of the same part."""
        turns = oracle[(episode.trajectory.seed + 2) % len(oracle)].turns
        return turns[min(len(episode.trajectory.turns), len(turns)) - 1].reply if turns else ""

    return {
        "empty": lambda _, __: "",
        "random_bytes": random_bytes,
        "echo": _echo,
        "echo_all": _echo_all,
        "format_only": format_only,
        "odd_words": odd_words,
        "long": long,
        "answer_of_another": answer_of_another,
        "all_random": _all_of(replies),
        "all_answers": _all_of(_first_replies(oracle)),
    }


def common_replies(baselines: Mapping[str, Sequence[Trajectory]]) -> list[str]:
    """The commonest first replies of each baseline."""
    counts = [
        Counter(turn.reply for episode in episodes for turn in episode.turns[:1])
        for episodes in baselines.values()
    ]
    common = (reply for count in counts for reply, _ in count.most_common(_COMMON))
    return list(dict.fromkeys(common))


def always(reply: str) -> Policy:
    return lambda _, __: reply


def _echo(episode: Episode, _: Random) -> str:
    return episode.trajectory.turns[-1].observation


def _echo_all(episode: Episode, _: Random) -> str:
    """The system prompt, the tools and the observation."""
    trajectory = episode.trajectory
    tools = json.dumps(trajectory.tools or "")
    return f"{trajectory.system_prompt}\n{tools}\n{trajectory.turns[-1].observation}"


def _all_of(replies: Mapping[str, set[int]]) -> Policy:
    """Many replies in one, in any order; none that only the present task has called forth."""

    def policy(episode: Episode, rng: Random) -> str:
        own = {episode.trajectory.seed}
        others = [reply for reply, seeds in replies.items() if seeds != own]
        return "\n".join(rng.sample(others, min(len(others), _MANY)))

    return policy


def _first_replies(episodes: Sequence[Trajectory]) -> dict[str, set[int]]:
    """Each first reply, and the seeds it was given to."""
    found: dict[str, set[int]] = {}
    for episode in episodes:
        for turn in episode.turns[:1]:
            found.setdefault(turn.reply, set()).add(episode.seed)
    return found

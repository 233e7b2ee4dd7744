"""Policies without skill, for an audit: none of them looks at what its task asks for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

from rl_experiments.audit.timed_play import EpisodePolicy
from rl_experiments.rollout.episode import Episode
from rl_experiments.rollout.types import Trajectory

_LONG_REPLY_CHARS = 20_000  # about as many as 4096 tokens have
_MAX_RANDOM_BYTES = 2000
_MAX_JOINED_REPLIES = 50  # other replies in one reply
_COMMON_REPLIES = 5  # of each baseline, as candidates for the best constant reply

# What breaks parsers: digits that `int` refuses, half a surrogate pair in JSON, line separators.
_ODD_WORDS = (
    *("", " ", "\0", "²", "٣", "½", "\u2028", "\u202e", r"\ud800", '"', "\\", "<", "{", "}"),
    *("-0", "NaN", "1e999", "null", "9" * 5000),
)
_FILLERS = (" ", "\n", "a", "0", "0,", "<", "{", "[", '{"a":', "(", "<think>", "<a>", "\\", "$")


def no_skill_policies(
    random: Sequence[Trajectory], oracle: Sequence[Trajectory]
) -> dict[str, EpisodePolicy]:
    """Return policies without skill, by name.

    They take the format of a reply from the replies of the baseline "random", and answers from
    those of the oracle to other tasks.
    """
    seeds_by_reply = _first_replies(random)
    random_replies = list(seeds_by_reply)
    words = [set(re.findall(r"\w+", reply)) for reply in random_replies]
    words_of_format = set.intersection(*words) if words else set()

    def replace_words(reply: str, replacement: Callable[[], str]) -> str:
        """Replace the words of the reply that not all random replies have."""
        return re.sub(
            r"\w+", lambda word: word[0] if word[0] in words_of_format else replacement(), reply
        )

    def random_reply(rng: Random) -> str:
        return rng.choice(random_replies) if random_replies else ""

    def random_bytes(_: Episode, rng: Random) -> str:
        return rng.randbytes(rng.randrange(_MAX_RANDOM_BYTES)).decode("latin-1")

    def format_only(_: Episode, rng: Random) -> str:
        return replace_words(random_reply(rng), str)

    def odd_words(_: Episode, rng: Random) -> str:
        return replace_words(random_reply(rng), lambda: rng.choice(_ODD_WORDS))

    def long(_: Episode, rng: Random) -> str:
        filler = rng.choice((*_FILLERS, replace_words(random_reply(rng), str) or "a"))
        return (filler * (_LONG_REPLY_CHARS // len(filler) + 1))[:_LONG_REPLY_CHARS]

    def answer_of_another(episode: Episode, _: Random) -> str:
        """Reply as the oracle did to another task of the same part (training or evaluation)."""
        turns = oracle[(episode.trajectory.seed + 2) % len(oracle)].turns
        return turns[min(len(episode.trajectory.turns), len(turns)) - 1].reply if turns else ""

    return {
        "empty": always(""),
        "random_bytes": random_bytes,
        "echo": _echo,
        "echo_all": _echo_all,
        "format_only": format_only,
        "odd_words": odd_words,
        "long": long,
        "answer_of_another": answer_of_another,
        "all_random": _all_at_once(seeds_by_reply),
        "all_answers": _all_at_once(_first_replies(oracle)),
    }


def common_replies(baselines: Mapping[str, Sequence[Trajectory]]) -> list[str]:
    """Return the most frequent first replies of each baseline, without repetitions."""
    counts = [
        Counter(turn.reply for episode in episodes for turn in episode.turns[:1])
        for episodes in baselines.values()
    ]
    common = (reply for count in counts for reply, _ in count.most_common(_COMMON_REPLIES))
    return list(dict.fromkeys(common))


def always(reply: str) -> EpisodePolicy:
    """Return the policy that gives this reply whatever it sees."""
    return lambda _, __: reply


def _echo(episode: Episode, _: Random) -> str:
    return episode.trajectory.turns[-1].observation


def _echo_all(episode: Episode, _: Random) -> str:
    """Reply with the system prompt, the tools and the observation."""
    trajectory = episode.trajectory
    tools = json.dumps(trajectory.tools or "")
    return f"{trajectory.system_prompt}\n{tools}\n{trajectory.turns[-1].observation}"


def _all_at_once(seeds_by_reply: Mapping[str, set[int]]) -> EpisodePolicy:
    """Return a policy that joins up to 50 of the replies, drawn at random.

    It leaves out replies that were given to its present task alone: they may be the answer.
    """

    def policy(episode: Episode, rng: Random) -> str:
        present = {episode.trajectory.seed}
        others = [reply for reply, seeds in seeds_by_reply.items() if seeds != present]
        return "\n".join(rng.sample(others, min(len(others), _MAX_JOINED_REPLIES)))

    return policy


def _first_replies(episodes: Sequence[Trajectory]) -> dict[str, set[int]]:
    """Return each first reply with the seeds of the tasks that it was given to."""
    seeds_by_reply: dict[str, set[int]] = {}
    for episode in episodes:
        for turn in episode.turns[:1]:
            seeds_by_reply.setdefault(turn.reply, set()).add(episode.seed)
    return seeds_by_reply

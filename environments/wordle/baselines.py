"""Scripted policies for Wordle: each looks at the environment's board and writes a reply."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from environments.wordle.game import Board, Words, consistent, feedback
from environments.wordle.replies import as_reply

if TYPE_CHECKING:
    from environments.protocol import ScriptedPolicy
    from environments.wordle.env import Wordle

_SAMPLE = 100  # secrets weighed, and twice as many guesses: 20,000 feedbacks at most


def random(env: Wordle, rng: Random) -> str:
    """Any word of the list."""
    return as_reply(rng.choice(env.list.words), think=env.think)


def random_consistent(env: Wordle, rng: Random) -> str:
    """Any word that the feedback so far leaves possible."""
    possible = consistent(env.list.words, env.board)
    return as_reply(rng.choice(possible), think=env.think)


def entropy(env: Wordle, rng: Random) -> str:
    """The guess whose feedback tells most, by a sample where many words are left."""
    return as_reply(most_telling(env.list.words, env.board), think=env.think)


def oracle(env: Wordle, rng: Random) -> str:
    return as_reply(env.secret, think=env.think)


@lru_cache(maxsize=4096)  # games begin alike
def most_telling(words: Words, board: Board) -> str:
    possible = consistent(words, board)
    if len(possible) <= 2:
        return possible[0]
    rng = Random(f"entropy/{board}")
    secrets = _some(possible, rng)
    # A word that cannot be the secret may tell more, but one that can is better at the same worth.
    guesses = [*_some(possible, rng), *_some(words, rng)]
    candidates = frozenset(possible)

    def worth(guess: str) -> tuple[float, bool]:
        counts = Counter(feedback(secret, guess) for secret in secrets)
        bits = -sum(n * math.log2(n / len(secrets)) for n in counts.values())
        return round(bits, 9), guess in candidates

    return max(guesses, key=worth)


def _some(words: Words, rng: Random) -> list[str]:
    return list(words) if len(words) <= _SAMPLE else rng.sample(words, _SAMPLE)


BASELINES: Mapping[str, ScriptedPolicy] = {
    "random": random,
    "random_consistent": random_consistent,
    "entropy": entropy,
    "oracle": oracle,
}

"""Scripted policies for Wordle: each reads the board and writes a reply."""

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

# Secrets that `entropy` weighs against at most twice as many guesses: 20,000 feedbacks at most.
_SAMPLE_SIZE = 100


def random(env: Wordle, rng: Random) -> str:
    """Guess any word of the list."""
    return as_reply(rng.choice(env.list.words), think=env.think)


def random_consistent(env: Wordle, rng: Random) -> str:
    """Guess any word that the marks so far leave possible."""
    possible = consistent(env.list.words, env.board)
    return as_reply(rng.choice(possible), think=env.think)


def entropy(env: Wordle, rng: Random) -> str:
    """Guess the word whose marks give the most information, estimated on a sample of words."""
    return as_reply(most_informative_guess(env.list.words, env.board), think=env.think)


def oracle(env: Wordle, rng: Random) -> str:
    """Guess the secret."""
    return as_reply(env.secret, think=env.think)


@lru_cache(maxsize=4096)  # many games share their first turns
def most_informative_guess(words: Words, board: Board) -> str:
    """Return the guess whose marks have the highest entropy over the possible secrets."""
    possible = consistent(words, board)
    if len(possible) <= 2:
        return possible[0]
    rng = Random(f"entropy/{board}")
    secrets = _sample(possible, rng)
    # A word that cannot be the secret may give more information. At equal information a word that
    # can be the secret is better.
    guesses = [*_sample(possible, rng), *_sample(words, rng)]
    candidates = frozenset(possible)

    def value(guess: str) -> tuple[float, bool]:
        counts = Counter(feedback(secret, guess) for secret in secrets)
        bits = -sum(n * math.log2(n / len(secrets)) for n in counts.values())
        return round(bits, 9), guess in candidates

    return max(guesses, key=value)


def _sample(words: Words, rng: Random) -> list[str]:
    return list(words) if len(words) <= _SAMPLE_SIZE else rng.sample(words, _SAMPLE_SIZE)


BASELINES: Mapping[str, ScriptedPolicy] = {
    "random": random,
    "random_consistent": random_consistent,
    "entropy": entropy,
    "oracle": oracle,
}

"""Helpers that play Wordle."""

from __future__ import annotations

from typing import Any

from environments import Step
from environments.wordle import Wordle
from environments.wordle.data import word_list

ENGLISH = word_list("english", 0.2)


def started(secret: str = "", seed: int = 0, **options: Any) -> Wordle:
    """Return an environment at the start of an episode, with a given secret if there is one."""
    env = Wordle(**options)
    env.reset(seed)
    env.secret = secret or env.secret
    return env


def says(word: str) -> str:
    """Return a reply in the format that guesses a word."""
    return f"<think>so</think>\n<guess>{word}</guess>"


def play(env: Wordle, replies: list[str]) -> list[Step]:
    """Play the replies, and the last one again until the episode ends; return the steps."""
    steps: list[Step] = []
    while not steps or steps[-1].end is None:
        steps.append(env.step(replies[min(len(steps), len(replies) - 1)]))
    return steps

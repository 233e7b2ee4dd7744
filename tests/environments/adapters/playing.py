"""Helpers that play the adapters of libraries that are installed."""

from __future__ import annotations

from importlib.util import find_spec
from random import Random
from typing import Any

import pytest

from environments import Environment, Step
from environments.adapters import GymnasiumText, ReasoningGym, TextArena

NEEDED: dict[str, Any] = {
    "reasoning_gym": ReasoningGym,
    "textarena": TextArena,
    "gymnasium": GymnasiumText,
}


def needs(library: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test if a library is not installed."""
    missing = find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


ADAPTERS = [pytest.param(cls, id=name, marks=needs(name)) for name, cls in NEEDED.items()]


def played(env: Environment, policy: str, seed: int, *, rng: Random, member: int = 0) -> list[Step]:
    """Play an episode with a scripted policy and return its steps."""
    env.reset(seed, member=member)
    steps = [env.step(env.baselines[policy](env, rng))]
    while steps[-1].end is None:
        steps.append(env.step(env.baselines[policy](env, rng)))
    return steps


def reward(steps: list[Step]) -> float:
    """Return the reward of the episode with these steps."""
    total = sum(step.reward for step in steps)
    last = steps[-1].episode_reward
    return total if last is None else last


# Replies that show no skill.
SKILLLESS = ["", "\x00\xff", "<answer></answer>", "<answer>0</answer>", "<action></action>", "[]"]

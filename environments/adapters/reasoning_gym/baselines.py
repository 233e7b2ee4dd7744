"""Scripted policies for reasoning-gym: each reads the current item and writes a reply."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from environments.adapters.replies import as_element

if TYPE_CHECKING:
    from environments.adapters.reasoning_gym.env import ReasoningGym
    from environments.protocol import ScriptedPolicy

_DRAWS = 8  # tries to draw an item with another question


def random(env: ReasoningGym, rng: Random) -> str:
    """Reply with the answer of another item of the same dataset."""
    other = env.item
    for _ in range(_DRAWS):
        other = env.source.item(rng.randrange(env.items), held_out=False)
        if other.question != env.item.question:
            break
    return as_element("answer", other.answer)


def oracle(env: ReasoningGym, rng: Random) -> str:
    """Reply with the answer of the item."""
    return as_element("answer", env.item.answer)


WITHOUT_ORACLE: Mapping[str, ScriptedPolicy] = {"random": random}
BASELINES: Mapping[str, ScriptedPolicy] = {**WITHOUT_ORACLE, "oracle": oracle}

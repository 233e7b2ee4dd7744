"""Scripted policies for TextArena, which know the bracketed texts that a game has shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from environments.adapters.textarena.env import TextArena
    from environments.protocol import ScriptedPolicy

_DEFAULT_ACTION = "[1]"  # for a game that has shown nothing in brackets


def random(env: TextArena, rng: Random) -> str:
    """Reply with one of the bracketed texts that the game has shown, with other digits in it."""
    shown = sorted(env.shown) or [_DEFAULT_ACTION]
    return re.sub(r"\d+", lambda _: str(rng.randint(0, 9)), rng.choice(shown))


def first(env: TextArena, rng: Random) -> str:
    """Reply the same every turn: the bracketed text that is first in the alphabet."""
    return min(env.shown, default=_DEFAULT_ACTION)


BASELINES: Mapping[str, ScriptedPolicy] = {"random": random, "first": first}

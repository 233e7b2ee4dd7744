"""Scripted policies for Gymnasium; the oracle plans on the transition table of toy texts."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from environments.adapters.replies import as_element

if TYPE_CHECKING:
    from environments.adapters.gymnasium.env import GymnasiumText
    from environments.protocol import ScriptedPolicy

_MAX_SWEEPS = 1000  # of value iteration
_DISCOUNT = 0.999
_plans: dict[str, list[int]] = {}  # the best action of each state, by environment and options


def random(env: GymnasiumText, rng: Random) -> str:
    """Take any action; if actions are texts, draw one from the action space."""
    if env.names:
        return as_element("action", rng.choice(env.names))
    env.gym.action_space.seed(rng.getrandbits(32))
    return as_element("action", env.gym.action_space.sample())


def first(env: GymnasiumText, rng: Random) -> str:
    """Take the same action every turn."""
    return as_element("action", env.names[0]) if env.names else random(env, Random(0))


def oracle(env: GymnasiumText, rng: Random) -> str:
    """Take the best action by the transition table, which only toy texts have."""
    key = f"{env.id} {env.options}"
    if key not in _plans:
        _plans[key] = best_actions(env.gym.unwrapped.P)
    return as_element("action", env.names[_plans[key][int(env.state)] - env.first])


def best_actions(
    table: Mapping[int, Mapping[int, list[tuple[float, int, float, bool]]]],
) -> list[int]:
    """Return the best action of each state, by value iteration with a small discount.

    The table maps a state and an action to outcomes: (probability, next state, reward, is end).
    """
    values = [0.0] * len(table)
    for _ in range(_MAX_SWEEPS):
        before = list(values)
        for state, actions in table.items():
            values[state] = max(_action_value(outcomes, values) for outcomes in actions.values())
        if max(abs(a - b) for a, b in zip(before, values, strict=True)) < 1e-6:
            break
    return [
        max(table[state], key=lambda action: _action_value(table[state][action], values))
        for state in range(len(table))
    ]


def _action_value(outcomes: list[tuple[float, int, float, bool]], values: list[float]) -> float:
    """Return the expected reward of an action plus the discounted value of the next state."""
    return sum(
        chance * (reward + _DISCOUNT * values[after] * (not is_end))
        for chance, after, reward, is_end in outcomes
    )


WITHOUT_TABLE: Mapping[str, ScriptedPolicy] = {"random": random, "first": first}
BASELINES = {**WITHOUT_TABLE, "oracle": oracle}

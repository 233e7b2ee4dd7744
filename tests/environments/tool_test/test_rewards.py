"""The rewards of the tool test against a slow oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments import End
from environments.tool_test import rewards
from environments.tool_test.replies import Call
from environments.tool_test.tools import CATALOGUE
from tests.environments.tool_test.playing import LIGHT, TIMER, says, started


def slow_shares(asked: Sequence[Call], made: Sequence[Call]) -> dict[str, float]:
    """Return the shares, by comparing calls as text that shows the types."""

    def shown(value: Any) -> str:
        return repr(float(value)) if type(value) in (int, float) else repr(value)

    wanted = Counter((call.name, shown_all(call, shown)) for call in asked)
    given = Counter((call.name, shown_all(call, shown)) for call in made)
    most = max(len(asked), len(made))
    names = Counter(call.name for call in asked) & Counter(call.name for call in made)
    return {"exact": float(wanted == given), "names": sum(names.values()) / most}


def shown_all(call: Call, shown: Callable[[Any], str]) -> str:
    return ", ".join(sorted(f"{name}={shown(value)}" for name, value in call.arguments.items()))


@st.composite
def asked_and_made(draw: st.DrawFn) -> tuple[list[Call], list[Call]]:
    """Draw the calls of a task, and the calls of a policy that makes some mistakes."""
    rng = Random(draw(st.integers(0, 10**6)))
    names = rng.sample(list(CATALOGUE), rng.randint(1, 3))
    asked = [Call(name, CATALOGUE[name].draw(rng)) for name in names]
    made = deepcopy(asked)
    rng.shuffle(made)
    for mistake in draw(st.lists(st.sampled_from(["drop", "again", "other", "value", "extra"]))):
        index = rng.randrange(len(made)) if made else None
        if mistake == "other" or index is None:
            name = rng.choice(list(CATALOGUE))
            made.append(Call(name, CATALOGUE[name].draw(rng)))
        elif mistake == "drop":
            del made[index]
        elif mistake == "again":
            made.append(made[index])
        elif mistake == "extra":
            made[index] = Call(made[index].name, {**made[index].arguments, "more": 1})
        else:
            arguments = dict(made[index].arguments)
            key = rng.choice(list(arguments))
            arguments[key] = rng.choice([0, 1, True, 5.0, "5", "hall", [], ["7"], None, {}])
            made[index] = Call(made[index].name, arguments)
    return asked, made


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(asked_and_made())
def test_rewards_match_the_oracle(calls: tuple[list[Call], list[Call]]) -> None:
    asked, made = calls
    shares = slow_shares(asked, made)
    assert rewards.exact(asked, made) == shares["exact"]
    assert rewards.right_names(asked, made) == pytest.approx(shares["names"])
    right = rewards.right_calls(asked, made)
    assert 0 <= right <= rewards.right_arguments(asked, made) <= shares["names"] <= 1
    step = started(*asked).step(says(*made))
    assert step.reward == shares["exact"]
    assert step.end is (End.WON if shares["exact"] else End.LOST if made else End.INVALID)


def test_rewards_by_shares() -> None:
    env = started(TIMER, LIGHT, exact_weight=4, names_weight=2, arguments_weight=1, calls_weight=8)
    dark = Call("switch_light", {"room": "hall", "on": False})
    for made, reward in (
        ([LIGHT, TIMER], 4 + 2 + 1 + 8),
        ([TIMER, dark], 2 + (1 + 1 / 2) / 2 + 8 / 2),
        ([TIMER], 2 / 2 + 1 / 2 + 8 / 2),
        ([TIMER, LIGHT, LIGHT], 15 * 2 / 3 - 4 * 2 / 3),  # as good as two of three
        ([TIMER, dark, LIGHT], 2 * 2 / 3 + (1 + 1 / 2) / 3 + 8 / 3),  # the first light counts
    ):
        env.reset(0)
        env.asked = (TIMER, LIGHT)
        assert env.step(says(*made)).reward == pytest.approx(reward)


def test_superfluous_calls_do_not_pay() -> None:
    all_ways = [Call("switch_light", {"room": "hall", "on": on}) for on in (True, False)]
    every_minute = [Call("set_timer", {"minutes": n}) for n in range(61)]
    weights = {"names_weight": 1.0, "arguments_weight": 1.0, "calls_weight": 1.0}
    honest = started(LIGHT, **weights).step(says(LIGHT)).reward
    assert honest == 4
    assert started(LIGHT, **weights).step(says(*all_ways)).reward <= honest / 2
    assert started(TIMER, **weights).step(says(*every_minute)).reward < 0.1
    rng = Random(0)
    everything = [Call(name, tool.draw(rng)) for name, tool in CATALOGUE.items()]
    assert started(TIMER, **weights).step(says(TIMER, *everything)).reward < honest / 5

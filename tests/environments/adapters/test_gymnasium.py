"""The adapter of Gymnasium: actions, ends, the oracle, screens, texts."""

from __future__ import annotations

from importlib import import_module
from random import Random
from statistics import mean
from typing import Any

import pytest

from environments import End
from environments.adapters import GymnasiumText
from environments.adapters.gymnasium.screens import plain
from tests.environments.adapters.playing import SKILLLESS, needs, played, reward


def test_a_coloured_screen_becomes_text() -> None:
    assert plain("  (Down)\nSF\n\x1b[41mH\x1b[0mG\n") == "SF\nHG\nred 'H' at row 2, column 1"
    assert plain("a\x1b[34;1mRY\x1b[0mb").split("\n") == ["aRYb", "blue 'RY' at row 1, column 2"]
    assert plain("plain") == "plain"


def solid(**more: Any) -> GymnasiumText:
    return GymnasiumText(options={"is_slippery": False}, **more)


@needs("gymnasium")
def test_a_lake_is_crossed_by_names_and_numbers() -> None:
    env = solid()
    assert env.reset(0) == "SFFF\nFHFH\nFFFH\nHFFG\nred 'S' at row 1, column 1\nState: 0"
    path = ["down", "1", "RIGHT", "<think>no</think>down", "2", "right"]
    steps = [env.step(f"<action>{action}</action>") for action in path[:3]]
    steps += [env.step("<think>left?</think><action>down</action>")]
    steps += [env.step(f"<action>{action}</action>") for action in path[4:]]
    assert [step.end for step in steps] == [None] * 5 + [End.WON]
    assert reward(steps) == 1.0 and steps[-1].metrics["num_steps"] == 6
    for reply in (*SKILLLESS, "<action>jump</action>", "<action>4</action>", "down"):
        env.reset(0)
        step = env.step(reply)
        assert (step.end, step.reward, step.episode_reward) == (End.INVALID, -1.0, -1.0)
    hole = solid()
    hole.reset(0)
    hole.step("<action>right</action>")
    assert hole.step("<action>down</action>").end is End.LOST
    short = solid(max_steps=2)
    assert played(short, "first", 0, rng=Random(0))[-1].end is End.TRUNCATED


@needs("gymnasium")
def test_the_oracle_is_best() -> None:
    for env, minimum in ((solid(), 1.0), (GymnasiumText(), 0.55)):
        won = [played(env, "oracle", seed, rng=Random(0))[-1].end is End.WON for seed in range(60)]
        assert mean(won) >= minimum
        lucky = [reward(played(env, "random", seed, rng=Random(seed))) for seed in range(60)]
        assert mean(lucky) < 0.2
    taxi = GymnasiumText(id="Taxi-v4", reward_scale=0.05, clip=2.0)
    steps = played(taxi, "oracle", 3, rng=Random(0))
    assert steps[-1].end is End.WON
    assert reward(steps) == pytest.approx(0.05 * (20 - (len(steps) - 1)))


@needs("gymnasium")
def test_later_chance_differs_by_member() -> None:
    def seen(member: int) -> list[str]:
        env = GymnasiumText()
        env.reset(2, member=member)
        return [env.step("<action>up</action>").observation for _ in range(3)]

    assert len({tuple(seen(member)) for member in range(8)}) > 1
    assert seen(3) == seen(3)


@needs("gymnasium")
def test_environments_of_texts_are_played() -> None:
    gymnasium: Any = import_module("gymnasium")

    class Echo(gymnasium.Env):  # type: ignore[misc]
        observation_space = gymnasium.spaces.Text(20)
        action_space = gymnasium.spaces.Text(5, charset="ab")

        def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
            super().reset(seed=options.get("seed"))
            return "say ab", {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return f"heard {action}", 7.0 * (action == "ab"), action == "ab", False, {}

    if "Echo-v0" not in gymnasium.registry:
        gymnasium.register("Echo-v0", entry_point=Echo)
    env = GymnasiumText(id="Echo-v0")
    assert env.reset(0) == "say ab"
    assert env.step("<action>ba</action>").observation == "heard ba"
    last = env.step("<action>ab</action>")
    assert (last.end, last.reward, last.episode_reward) == (End.WON, 1.0, 1.0)
    env.reset(1)
    assert env.step("<action>abc</action>").end is End.INVALID

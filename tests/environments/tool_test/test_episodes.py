"""Episodes of the tool test: turns, tasks, scripted policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from statistics import fmean
from typing import Any

import pytest

from environments import End, Step, evaluation_seed, training_seed
from environments.tool_test import ToolTest
from environments.tool_test.replies import Call
from tests.environments.tool_test.playing import LIGHT, TIMER, says, started


def test_single_calls_are_answered_and_rewarded() -> None:
    env = started(TIMER, LIGHT, one_a_turn=True, calls_weight=0.5)
    first = env.step(says(LIGHT))
    assert (first.observation, first.role) == ('{"result": "done"}', "tool")
    assert (first.end, first.reward) == (None, 0.25)
    second = env.step(says(TIMER))
    assert (second.end, second.reward) == (None, 0.25)
    last = env.step("All done.")
    assert (last.end, last.reward, last.episode_reward) == (End.WON, 1.0, 1.5)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("")


def test_wrong_calls_in_turns_are_answered_with_errors() -> None:
    def answers(*replies: str, **options: Any) -> list[Step]:
        env = started(TIMER, LIGHT, one_a_turn=True, names_weight=1, **options)
        steps = [env.step(reply) for reply in replies]
        assert sum(step.reward for step in steps) == pytest.approx(steps[-1].episode_reward)
        return steps

    several = answers(says(TIMER, LIGHT), "Done.")
    assert several[0].observation == '{"error": "one call a turn"}'
    assert (several[1].end, several[1].episode_reward) == (End.INVALID, 0.0)
    wrong = [says(Call("fly")), says(Call("set_timer", {"minutes": "5"})), "<tool_call>{"]
    steps = answers(*wrong, says(TIMER), says(LIGHT), "Done.")
    assert [json.loads(step.observation).get("error") for step in steps[:4]] == [
        *("there is no such tool", "minutes has the wrong type or value"),
        *("the call cannot be read", None),
    ]
    assert steps[-1].end is End.LOST
    assert steps[-1].episode_reward == pytest.approx(2 / 5)
    assert steps[-1].metrics["calls"] == 5 and steps[-1].metrics["unreadable_calls"] == 1
    assert answers(says(TIMER), says(LIGHT), says(TIMER), "Done.")[-1].end is End.LOST
    assert answers(*[says(TIMER)] * 4, max_turns=4)[-1].end is End.TRUNCATED
    assert answers("No.")[-1].end is End.INVALID
    cut = started(TIMER, LIGHT, one_a_turn=True, names_weight=1)
    cut.step(says(TIMER))
    assert (cut.truncate().end, cut.made) == (End.TRUNCATED, [TIMER])


SETTINGS: list[dict[str, Any]] = [
    {},
    {"arguments": "free", "max_calls": 2},
    {"offered": ["paint_room", "switch_light"], "max_calls": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_evaluation_and_training_share_no_task(options: dict[str, Any]) -> None:
    env = ToolTest(**options)

    def drawn(seed: Callable[[int], int]) -> set[frozenset[str]]:
        tasks = set()
        for index in range(1500):
            shown = env.reset(seed(index))
            assert env.reset(seed(index), member=5) == shown
            assert env.min_calls <= len(env.asked) <= env.max_calls
            assert env.category == f"{len(env.asked)} call{'s' * (len(env.asked) > 1)}"
            for call in env.asked:
                line = next(line for line in shown.split("\n") if line.startswith(f"- {call.name}"))
                for name, value in call.arguments.items():
                    assert f"{name}={json.dumps(value, ensure_ascii=False)}" in line
            tasks.add(frozenset(shown.split("\n")))
        return tasks

    evaluation, training = drawn(evaluation_seed), drawn(lambda index: training_seed(1, index))
    assert not evaluation & training and len(training) > len(evaluation) * 0.9
    assert len(evaluation) > (500 if not options else 5)


def test_free_arguments_take_any_value_of_the_right_type() -> None:
    env = started(Call("set_timer"), arguments="free")
    assert "of your choice" in env.system_prompt
    for minutes, end in ((1, End.WON), (10**9, End.WON), ("1", End.LOST)):
        env.reset(0)
        env.asked = (Call("set_timer"),)
        assert env.step(says(Call("set_timer", {"minutes": minutes}))).end is end


@pytest.mark.slow
@pytest.mark.parametrize("one_a_turn", [False, True])
def test_scripted_policies_without_skill_earn_little(one_a_turn: bool) -> None:
    rewards = {}
    for name, policy in ToolTest.baselines.items():
        env, rng, ends = ToolTest(one_a_turn=one_a_turn, max_turns=9), Random(0), []
        for index in range(200):
            env.reset(evaluation_seed(index))
            while not (step := env.step(policy(env, rng))).end:
                pass
            ends.append(step)
        rewards[name] = fmean(step.episode_reward or 0.0 for step in ends)
        assert all(not step.metrics["unreadable_calls"] for step in ends)
    assert rewards.pop("oracle") == 1
    assert max(rewards.values()) < 0.2

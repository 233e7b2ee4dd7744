"""The rewards of BFCL: the oracle, replies without skill, partial credit."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from statistics import mean
from typing import Any

import pytest

from environments import End, evaluation_seed
from environments.bfcl_single_turn import BfclSingleTurn
from environments.bfcl_single_turn.baselines import NO_CALL
from environments.bfcl_single_turn.data import UNWINNABLE, entries_of
from environments.bfcl_single_turn.grading import grade
from environments.bfcl_single_turn.replies import as_reply, parse
from environments.bfcl_single_turn.rewards import share_of_right_arguments
from tests.environments.bfcl_single_turn.cases import (
    SINGLE_TURN,
    TRIANGLE,
    case_of,
    needs_bfcl,
    playing,
    right,
)


@pytest.mark.slow
@needs_bfcl
def test_the_oracle_is_right_wherever_a_reply_can_be() -> None:
    lost, count = set(), 0
    for category in SINGLE_TURN:
        for entry in entries_of(category):
            case, count = entry.case(), count + 1
            calls = right(case)
            if grade(case, calls, None):
                env = playing(case)
                step = env.step(env.baselines["oracle"](env, Random(0)))
                assert (step.end, step.reward) == (End.WON, 1.0), entry.id
            else:
                lost.add(entry.id)
    assert lost == UNWINNABLE and count == 3641


def original_reward(reply: str) -> float:
    """Return the reward of an earlier system: 1 for any well-formed call, whatever the answer."""
    calls = parse(reply).calls
    return float(bool(calls))


def rewards_of(policy: Callable[[BfclSingleTurn, Random], str], **options: Any) -> list[float]:
    env, rng, rewards = BfclSingleTurn(**options), Random(0), []
    for index in range(300):
        env.reset(evaluation_seed(index))
        rewards.append(env.step(policy(env, rng)).reward)
    return rewards


def everything(env: BfclSingleTurn, _: Random) -> str:
    return as_reply([(tool["function"]["name"], {}) for tool in env.tools or []])


def echo(env: BfclSingleTurn, _: Random) -> str:
    return f"{env.case['question'][0][-1]['content']} {env.tools}"


NO_SKILL: dict[str, Callable[[BfclSingleTurn, Random], str]] = {
    "random": BfclSingleTurn.baselines["random"],
    "everything": everything,
    "constant": lambda env, rng: as_reply([("math_factorial", {"number": 5})]),
    "empty": lambda env, rng: "",
    "bytes": lambda env, rng: rng.randbytes(100).decode("latin-1"),
    "echo": echo,
    "half a call": lambda env, rng: '<tool_call>\n{"name": "f", ',
}


@pytest.mark.slow
@needs_bfcl
def test_no_reply_without_skill_comes_near_the_oracle() -> None:
    assert min(rewards_of(BfclSingleTurn.baselines["oracle"])) == 1.0
    called = [category for category in SINGLE_TURN if "relevance" not in category]
    for name, policy in NO_SKILL.items():
        # Words without a call are right where no function fits: that is a third of the cases.
        assert mean(rewards_of(policy)) < (0.4 if name in ("bytes", "echo") else 0.05), name
        assert mean(rewards_of(policy, categories=called)) < 0.05, name
    env = BfclSingleTurn()
    env.reset(0)
    replies = [env.baselines["random"](env, Random(seed)) for seed in range(100)]
    assert mean(map(original_reward, replies)) == 1.0  # a reward like that must not come back


@needs_bfcl
def test_partial_credit_is_by_argument() -> None:
    case = case_of(TRIANGLE)
    name = "calculate_triangle_area"

    def credit(*calls: tuple[str, dict[str, Any]]) -> float:
        return playing(case).step(as_reply(list(calls))).metrics["partial"]

    both, one = (name, {"base": 10, "height": 5}), (name, {"base": 10, "height": 6})
    assert credit(both) == 1.0 and credit(one) == 0.5
    assert credit((name, {"base": 10})) == 0.5
    assert credit((name, {"base": 10, "height": 5, "depth": 1})) == pytest.approx(2 / 3)
    assert credit((name, {})) == credit(("area", {"base": 10, "height": 5})) == 0.0
    assert credit(both, one) == 0.5 and credit(both, both, both) == 0.0
    step = playing(case).step(as_reply([one]))
    assert step.reward == pytest.approx(0.3 * 0.5) and step.end is End.LOST


@needs_bfcl
def test_partial_credit_does_not_fall_with_right_calls() -> None:
    case = case_of("parallel_0")
    calls: Any = right(case)
    shares = [share_of_right_arguments(case, calls[:count]) for count in range(len(calls) + 1)]
    assert shares == [count / len(calls) for count in range(len(calls) + 1)]
    assert share_of_right_arguments(case, calls[::-1]) == 1.0
    for entry in entries_of("parallel"):  # where calls may share arguments, each counts once
        case = entry.case()
        calls = right(case)
        assert share_of_right_arguments(case, calls[:1]) == pytest.approx(1 / len(calls))


@needs_bfcl
def test_a_broken_call_pays_nowhere() -> None:
    for case_id in (TRIANGLE, "irrelevance_0", "live_relevance_0-0-0"):
        for reply in ("", " \n", "<think>Hm.</think>", "<tool_call>{", '[{"name": "f"}]', "{"):
            step = playing(case_of(case_id)).step(reply)
            assert (step.end, step.reward, step.metrics["invalid"]) == (End.INVALID, -0.2, 1.0)
            assert step.metrics["official"] == (case_id == "irrelevance_0")
    silent = playing(case_of("irrelevance_0")).step(NO_CALL)
    assert (silent.end, silent.reward) == (End.WON, 1.0)


@needs_bfcl
def test_relevance_pays_for_a_plausible_call_alone() -> None:
    case = case_of("live_relevance_2-2-0")  # search_web, for the capital of the United States

    def step(name: str, given: dict[str, Any]) -> Any:
        return playing(case).step(as_reply([(name, given)]))

    assert step("search_web", {"query": "capital of the United States"}).reward == 1.0
    implausible: list[dict[str, Any]] = [{}, {"query": "zzz"}, {"query": 5}]
    for arguments in [*implausible, {"query": "capital", "colour": 1}]:
        wrong = step("search_web", arguments)
        assert (wrong.reward, wrong.metrics["official"], wrong.end) == (0.0, 1.0, End.WON)
    assert step("search", {"query": "capital"}).reward == 0.0

"""The audit of environments: it names each planted fault, and the shipped environments pass."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import pytest

from environments import End, Environment, ScriptedPolicy, Step
from environments.bfcl_single_turn import BfclSingleTurn
from environments.bfcl_single_turn.official import official
from environments.bfcl_single_turn.replies import parse
from environments.game2048 import Game2048
from environments.wordle import Wordle
from rl_experiments.audit.environment import EnvironmentAudit
from rl_experiments.commands.audit import audit
from rl_experiments.config.registration import register
from rl_experiments.errors import UserError

MISSING = ""
try:
    official()
except ValueError as error:
    MISSING = str(error)
needs_bfcl = pytest.mark.skipif(bool(MISSING), reason=MISSING)

Rule = Callable[[str, int], float]


def right_only(reply: str, number: int) -> float:
    return float(reply == f"say {number}")


@dataclass
class Parrot(Environment):
    """Say the number that is asked for."""

    rule: ClassVar[Rule] = right_only
    baselines: ClassVar[dict[str, ScriptedPolicy]] = {
        "random": lambda env, rng: f"say {rng.randrange(10)}",
        "oracle": lambda env, rng: f"say {env.number}",
    }

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.number = Random(f"parrot/{seed}").randrange(10)
        return f"Case {seed}: say {self.number} without the case"

    def step(self, reply: str) -> Step:
        reward = type(self).rule(reply, self.number)
        return Step(reward=reward, end=End.WON if reward == 1 else End.LOST)


def parrot(rule: Rule, **others: Any) -> Environment:
    """Return a Parrot with this rule, and with `others` in place of its own attributes."""
    planted = type("Planted", (Parrot,), {"rule": staticmethod(rule), **others})
    environment: Environment = planted()
    return environment


def faults(environment: Environment, num_examples: int = 60) -> str:
    return "\n".join(EnvironmentAudit(environment, num_examples).faults)


def test_a_sound_environment_has_no_fault() -> None:
    audited = EnvironmentAudit(parrot(right_only), 60)
    assert audited.faults == [] and audited.notes == []
    assert audited.oracle == "oracle" and audited.results["oracle"].rewards == [1.0] * 60
    assert audited.results["empty"].ends == {End.LOST: 60}


def by_length(reply: str, number: int) -> float:
    return right_only(reply, number) or min(1.0, len(reply) / 1000)


def by_format(reply: str, number: int) -> float:
    return float(reply.strip() == "say") or right_only(reply, number)


def if_it_is_in_there(reply: str, number: int) -> float:
    return float(f"say {number}" in reply)


def mostly_seven(reply: str, number: int) -> float:
    return 0.9 if reply == "say 7" else right_only(reply, number)


def of_echo(reply: str, number: int) -> float:
    return float("Case" in reply) or right_only(reply, number)


@pytest.mark.parametrize(
    ("rule", "policy"),
    [
        (by_length, "random_bytes"),
        (by_length, "long"),
        (by_format, "format_only"),
        (if_it_is_in_there, "all_answers"),
        (if_it_is_in_there, "echo"),
        (mostly_seven, "constant"),
        (of_echo, "echo_all"),
        (lambda reply, number: float(not reply), "empty"),
    ],
)
def test_a_policy_without_skill_that_earns_much_is_a_fault(rule: Rule, policy: str) -> None:
    audited = EnvironmentAudit(parrot(rule), 60)
    earned = audited.results[policy].mean
    assert earned and earned.value > 0.5
    assert "a policy without skill comes near the oracle" in "\n".join(audited.faults)
    near = audited.where_by_fault["a policy without skill comes near the oracle"]
    assert any(line.startswith(f"{policy} earns {earned.value:.3f}") for line in near)


def fails_on_odd_digits(reply: str, number: int) -> float:
    text = reply.removeprefix("say ")
    return float(text != reply and text.isdigit() and int(text) == number)


def slow_on_long_replies(reply: str, number: int) -> float:
    if len(reply) > 10_000:
        until = time.thread_time() + 0.08
        while time.thread_time() < until:
            pass
    return right_only(reply, number)


def silence_is_better(reply: str, number: int) -> float:
    return -1.0 if reply == f"say {number}" else 0.0


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (lambda reply, number: right_only(reply, number) * 1e6, r"too great: random at .* 1e\+06"),
        (lambda reply, number: 0.5, "rewards vary in no group"),
        (lambda reply, number: 0.5, "skill does not pay: oracle - random is 0.000"),
        (lambda reply, number: math.nan if "3" in reply else 0.0, "random at .*Step.reward is nan"),
        (lambda reply, number: len(reply) / 0 if "\0" in reply else 0.0, "ZeroDivisionError"),
        (fails_on_odd_digits, "fails: odd_words at .*, to 'say .*', ValueError: "),
        (slow_on_long_replies, "slow: long at seed 0, replies of up to 20000 characters, "),
        (silence_is_better, "skill does not pay: oracle - random is -"),
        (silence_is_better, "comes near the oracle: empty earns 0.000 .*, first reply ''"),
    ],
)
def test_a_faulty_reward_is_named(rule: Rule, fault: str) -> None:
    assert re.search(fault, faults(parrot(rule)))


def test_a_policy_stops_after_a_slow_step() -> None:
    audited = EnvironmentAudit(parrot(slow_on_long_replies), 20)
    assert len(audited.results["long"].rewards) == 1
    assert len(audited.results["all_answers"].rewards) == 20


def test_no_policy_without_skill_gets_the_answer_of_its_task() -> None:
    def hidden_number(self: Any, seed: int, *, member: int = 0) -> str:
        self.number = 1000 + seed
        return "say it"

    audited = EnvironmentAudit(parrot(if_it_is_in_there, reset=hidden_number), 40)
    assert audited.results["oracle"].rewards == [1.0] * 40
    for name in ("all_answers", "answer_of_another", "all_random"):
        assert audited.results[name].rewards == [0.0] * 40


def test_a_step_that_is_slow_once_is_no_fault() -> None:
    loaded: list[bool] = []

    def slow_at_first(reply: str, number: int) -> float:
        if not loaded:
            loaded.append(True)
            slow_on_long_replies("a" * 10_001, number)
        return right_only(reply, number)

    assert faults(parrot(slow_at_first)) == "" and loaded


def test_a_reset_that_depends_on_more_than_the_seed_is_a_fault() -> None:
    calls = iter(range(10**9))

    def unseeded(self: Any, seed: int, *, member: int = 0) -> str:
        return Parrot.reset(self, seed) + " " * (next(calls) % 11)

    def by_member(self: Any, seed: int, *, member: int = 0) -> str:
        return Parrot.reset(self, seed + 2 * member)

    text = faults(parrot(right_only, reset=unseeded))
    assert "a seed differs when played again: seed 0, its task (and " in text
    text = faults(parrot(right_only, reset=by_member))
    assert text.startswith("members of a group get different tasks: seed 0 (and 24 more)")


def test_a_reward_that_depends_on_more_than_the_replies_is_a_fault() -> None:
    def lucky(reply: str, number: int) -> float:
        return right_only(reply, number) * next(luck)

    luck = iter(Random(0).random, 2.0)
    text = faults(parrot(lucky))
    assert "a seed differs when played again: seed " in text
    assert "its episode with the same replies" in text


def test_evaluation_on_training_tasks_is_noted() -> None:
    def shared(self: Any, seed: int, *, member: int = 0) -> str:
        return Parrot.reset(self, seed // 2 % 15)

    def hidden(self: Any, seed: int, *, member: int = 0) -> str:
        Parrot.reset(self, seed)
        return "say it"

    audited = EnvironmentAudit(parrot(right_only, reset=shared), 60)
    assert audited.notes == ["all 15 tasks seen in evaluation are in training too"]
    assert EnvironmentAudit(parrot(right_only, reset=hidden), 60).notes == []


def endless(self: Any, reply: str) -> Step:
    return Step(observation="go on", reward=0.01)


def endless_unless_right(self: Any, reply: str) -> Step:
    step = Parrot.step(self, reply)
    return step if "say" in reply else endless(self, reply)


@pytest.mark.slow
def test_a_baselines_episode_without_end_is_a_fault() -> None:
    audited = EnvironmentAudit(parrot(right_only, step=endless), 60)
    assert "an episode has no end in 5000 turns: random at seed 0 (and 1 more)" in audited.faults
    # One such episode of each baseline is enough; policies without skill do not play.
    assert {name: len(result.rewards) for name, result in audited.results.items()} == {
        "random": 1,
        "oracle": 1,
    }
    # Policies without skill are cut, as a limit on tokens would cut them.
    audited = EnvironmentAudit(parrot(right_only, step=endless_unless_right), 60)
    assert audited.faults == [] and audited.results["empty"].ends == {End.TRUNCATED: 60}
    assert any(
        "only a limit (here 20 turns) ends episodes: empty 60" in note for note in audited.notes
    )
    lost = parrot(right_only, step=endless_unless_right, truncate=lambda self: Step())
    assert "empty at seed 0, to '', ValueError: truncate returned a Step without an end" in faults(
        lost
    )


def test_a_baseline_that_raises_is_a_fault() -> None:
    scripts = {**Parrot.baselines, "clumsy": lambda env, rng: env.number.missing}
    text = faults(parrot(right_only, baselines=scripts))
    assert text.startswith("an episode fails: clumsy at seed 0, to '', the policy raises Attribute")


def test_an_environment_that_always_fails_has_its_error_in_a_fault() -> None:
    def broken(self: Any, seed: int, *, member: int = 0) -> str:
        raise KeyError("number")

    audited = EnvironmentAudit(parrot(right_only, reset=broken), 20)
    assert "an episode fails: random at seed 0, KeyError: 'number'" in "\n".join(audited.faults)
    assert audited.results["empty"].mean is None


def original(self: BfclSingleTurn, reply: str) -> Step:
    """As the system before this one graded: 1 for any well-formed call, whatever the answer."""
    is_call = bool(parse(reply).calls)
    return Step(reward=float(is_call), end=End.WON if is_call else End.INVALID)


@needs_bfcl
def test_the_original_reward_of_function_calls_fails() -> None:
    @dataclass
    class Original(BfclSingleTurn):
        step = original

    audited = EnvironmentAudit(Original(), 60)
    assert "skill does not pay" in audited.where_by_fault
    near = audited.where_by_fault["a policy without skill comes near the oracle"]
    assert any(line.startswith("constant earns 1.000") for line in near)


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [Wordle(words="tiny"), Game2048(win_value=32, max_moves=30)]
)
def test_shipped_environments_pass(environment: Environment) -> None:
    audited = EnvironmentAudit(environment, 60)
    assert audited.faults == []
    expected = "oracle" if isinstance(environment, Wordle) else "merge_greedy"
    assert audited.oracle == expected


@needs_bfcl
def test_function_calls_pass() -> None:
    assert faults(BfclSingleTurn()) == ""


@pytest.mark.slow
def test_the_verb_prints_a_table_and_fails_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    register()
    audit(["env=wordle", "model=tiny", "num_examples=40"])
    shown = capsys.readouterr().out
    assert "name=wordle words=tiny" in shown and "no fault found" in shown
    assert re.search(r"oracle +40 +1\.700  1\.700 to 1\.700", shown)
    with pytest.raises(UserError, match=r"^env=wordle: 1 fault found$"):
        weights = ["env.exact_weight=90", "env.partial_weight=90"]
        audit(["env=wordle", "model=tiny", "num_examples=40", *weights])
    assert "a reward is too great: " in capsys.readouterr().out
    with pytest.raises(UserError, match="num_examples=5: audit needs at least 20"):
        audit(["num_examples=5"])
    with pytest.raises(UserError, match="only settings are taken here"):
        audit(["--help"])

"""What an environment returns: plain values, or an episode that fails and says why."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from environments import End, Environment, Step
from rl_experiments.rollout.episode import MAX_TURNS, Episode, play_scripted
from rl_experiments.rollout.types import EpisodeSpec, Trajectory

NAN = float("nan")


@dataclass
class Odd(Environment):
    """An environment that returns what it is told to."""

    returned: Any = None  # by `step`, or a function that makes it
    first: Any = "?"  # returned by `reset`
    traits: Any = None  # attributes of the class that are replaced
    baselines: ClassVar = {"random": lambda env, rng: "x"}

    def __getattribute__(self, name: str) -> Any:
        traits = object.__getattribute__(self, "__dict__").get("traits") or {}
        return traits[name] if name in traits else object.__getattribute__(self, name)

    def reset(self, seed: int, *, member: int = 0) -> str:
        first: str = self.first
        return first

    def step(self, reply: str) -> Step:
        step: Step = self.returned() if callable(self.returned) else self.returned
        return step

    def truncate(self) -> Step:
        return self.step("")


def played(returned: Any, first: Any = "?", **traits: Any) -> Trajectory:
    env = Odd(returned, first, traits)
    (trajectory,) = play_scripted(env, lambda env, rng: "x", [EpisodeSpec(1)], name="random")
    json.dumps(trajectory.to_json(), allow_nan=False)
    return trajectory


def ended(reward: Any = 1, end: Any = End.WON, **values: Any) -> Step:
    return Step(reward=reward, end=end, **values)


NUMBERS = {
    "int": 1,
    "bool": True,
    "Decimal": Decimal(1),
    "Fraction": Fraction(1),
    **{f"numpy {kind.__name__}": kind(1) for kind in (np.float32, np.int64, np.float16, np.bool_)},
    "numpy array without axes": np.array(1.0),
    "torch": torch.tensor(1.0, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_a_number_of_any_library_becomes_a_float(value: Any) -> None:
    step = ended(value, episode_reward=value, metrics={"win": value})
    record = played(step)
    numbers = [record.turns[0].reward, record.reward, record.metrics["win"]]
    assert numbers == [1.0] * 3 and {type(number) for number in numbers} == {float}


@pytest.mark.parametrize("end", ["won", End.WON, np.str_("won")])
def test_an_end_may_be_its_text(end: Any) -> None:
    record = played(ended(end=end))
    assert record.end is End.WON and record.won


def test_texts_and_kinds_become_plain() -> None:
    steps = iter([Step(observation="half \ud83d of it"), ended()])
    tools = ({"type": "function", "function": {"name": "t"}},)
    record = played(lambda: next(steps), "\ud83d", category=None, task_key=7, tools=tools)
    assert [turn.observation for turn in record.turns] == ["\ufffd", "half \ufffd of it"]
    assert (record.category, record.task_key, record.tools) == ("", "7", list(tools))


def exits() -> Step:
    sys.exit(3)


REFUSED: Mapping[str, tuple[Callable[[], Trajectory], str]] = {
    "nan": (lambda: played(ended(NAN)), "Step.reward is nan: it must be a finite number"),
    "minus inf": (lambda: played(ended(-np.inf)), "Step.reward is -inf"),
    "Decimal NaN": (lambda: played(ended(Decimal("sNaN"))), "Step.reward is Decimal('sNaN')"),
    "a number beyond floats": (lambda: played(ended(10**400)), "Step.reward is 1000"),
    "no reward": (lambda: played(ended(None)), "Step.reward is None"),
    "text": (lambda: played(ended("1.0")), "Step.reward is '1.0'"),
    "complex": (lambda: played(ended(1j)), "Step.reward is 1j"),
    "several numbers": (lambda: played(ended(np.ones(2))), "Step.reward is array"),
    "reward of a turn": (lambda: played(Step(reward=NAN)), "Step.reward is nan"),
    "of the episode": (lambda: played(ended(episode_reward=NAN)), "Step.episode_reward is nan"),
    "metric": (lambda: played(ended(metrics={"a": NAN})), "Step.metrics['a'] is nan"),
    "metric text": (lambda: played(ended(metrics={"a": "b"})), "Step.metrics['a'] is 'b'"),
    "no metrics": (lambda: played(ended(metrics=None)), "Step.metrics are None"),
    "end": (lambda: played(ended(end=True)), "Step.end is True: it must be None, or one of won"),
    "other end": (lambda: played(ended(end="victory")), "Step.end is 'victory'"),
    "end as a number": (lambda: played(ended(end=1)), "Step.end is 1"),
    "failed": (lambda: played(ended(end=End.FAILED)), "itself ended the episode as failed"),
    "no observation": (lambda: played(Step(observation=None)), "Step.observation is None"),  # type: ignore[arg-type]
    "None": (lambda: played(None), "step returned None: it must return a Step"),
    "as Gymnasium": (lambda: played(("", 1.0, True, False, {})), "step returned ('', 1.0, True"),
    "no end": (lambda: played(Step()), f"no end after {MAX_TURNS} turns"),
    "exit": (lambda: played(exits), "SystemExit: 3"),
    "reset as Gymnasium": (lambda: played(ended(), ("?", {})), "observation of reset is ('?', {})"),
    "reset with a number": (lambda: played(ended(), 7), "the observation of reset is 7"),
    "tools": (lambda: played(ended(), tools=[{"name": "t"}]), "tools[0] must be"),
    "tools beyond JSON": (
        lambda: played(ended(), tools=[{"function": {"name": "t", "x": {1}}}]),
        "tools cannot be written as JSON",
    ),
    "turns shown": (lambda: played(ended(), earlier_turns_shown=-1), "earlier_turns_shown is -1"),
}


@pytest.mark.parametrize(("play", "reason"), REFUSED.values(), ids=REFUSED)
def test_anything_else_fails_the_episode_with_its_name(
    play: Callable[[], Trajectory], reason: str
) -> None:
    record = play()
    assert (record.end, record.reward) == (End.FAILED, None)
    assert record.error and reason in record.error and "\n" not in record.error


def test_truncation_must_end_the_episode() -> None:
    episode = Episode(Odd(Step()), EpisodeSpec(1))
    episode.truncate()
    assert episode.trajectory.end is End.FAILED
    assert "truncate returned a Step without an end" in (episode.trajectory.error or "")


def test_a_policy_that_raises_or_returns_no_text_fails_its_episode_alone() -> None:
    def policy(env: Any, rng: Random) -> Any:
        if env.seed % 4 == 1:
            raise LookupError("no move\nis left")
        return None if env.seed % 4 == 3 else "x"

    class Seeded(Odd):
        def reset(self, seed: int, *, member: int = 0) -> str:
            self.seed = seed
            return "?"

    specs = [EpisodeSpec(seed) for seed in range(4)]
    records = list(play_scripted(Seeded(ended()), policy, specs, name="random"))
    assert [record.end for record in records] == [End.WON, End.FAILED, End.WON, End.FAILED]
    assert records[1].error == "the policy raises LookupError: no move is left"
    assert "the policy returned None" in (records[3].error or "")

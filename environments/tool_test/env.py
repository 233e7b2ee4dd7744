"""The tool test: call dummy tools, all in one reply or one a turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from environments.protocol import End, Environment, ScriptedPolicy, Step, is_evaluation_seed
from environments.settings import did_you_mean, is_int, is_number, member, require
from environments.tool_test import rewards, tasks
from environments.tool_test.baselines import BASELINES
from environments.tool_test.replies import Call, parse
from environments.tool_test.tasks import Arguments
from environments.tool_test.tools import CATALOGUE

_WEIGHTS = ("exact_weight", "names_weight", "arguments_weight", "calls_weight")


@dataclass
class ToolTest(Environment):
    """Call the tools that are asked for, with the right arguments, and no others."""

    offered: list[str] = field(default_factory=list)  # names of tools; empty: all
    min_calls: int = 1  # that a task asks for
    max_calls: int = 3
    arguments: Arguments = Arguments.given
    one_a_turn: bool = False  # whether each turn has one call, which the tool answers
    max_turns: int = 8  # of an episode with `one_a_turn`
    exact_weight: float = 0.8  # reward for exactly the calls asked for
    names_weight: float = 0.1  # reward for the share of right tools
    arguments_weight: float = 0.1  # reward for the share of right arguments
    calls_weight: float = 0.0  # reward for the share of right calls

    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        names = self.offered
        valid = len({*names}) == len(names) and {*names} <= {*CATALOGUE}
        hints = (did_you_mean(name, CATALOGUE) for name in names if name not in CATALOGUE)
        allowed = f"different names among {', '.join(CATALOGUE)}{next(hints, '')}"
        require(valid, "offered", ",".join(names), allowed)
        self.names = list(names or CATALOGUE)
        count = len(self.names)
        valid = is_int(self.min_calls, 1, count)
        require(valid, "min_calls", self.min_calls, f"from 1 to {count}, as many as are offered")
        valid = is_int(self.max_calls, self.min_calls, count)
        require(valid, "max_calls", self.max_calls, f"from env.min_calls to {count}")
        self.arguments = member(Arguments, "arguments", self.arguments)
        require(isinstance(self.one_a_turn, bool), "one_a_turn", self.one_a_turn, "true or false")
        minimum = self.max_calls + 1 if self.one_a_turn else 1
        valid = is_int(self.max_turns, minimum, 1000)
        allowed = f"from {minimum} to 1000; one_a_turn needs one more than env.max_calls"
        require(valid, "max_turns", self.max_turns, allowed)
        for name in _WEIGHTS:
            value = getattr(self, name)
            require(is_number(value, 0, 100), name, value, "from 0 to 100")
        self._counts = (self.min_calls, self.max_calls)
        if not tasks.has_both_parts(tuple(self.names), self._counts, self.arguments):
            raise ValueError(
                f"env.offered={','.join(self.names)}: must leave tasks for training and others for "
                "evaluation: offer more tools, or raise env.max_calls"
            )

    @property
    def system_prompt(self) -> str:
        given = self.arguments is Arguments.given
        which = "the arguments given" if given else "arguments of your choice"
        how = "Make all calls in one reply."
        if self.one_a_turn:
            how = "Make one call a turn. When all are made, reply without a call."
        return f"Call the tools asked for, each once, with {which}, and no others. {how}"

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [CATALOGUE[name].schema for name in self.names]

    @property
    def category(self) -> str:
        """The number of calls asked for, as `2 calls`."""
        return f"{len(self.asked)} call{'s' if len(self.asked) > 1 else ''}"

    @property
    def task_key(self) -> str:
        """The calls asked for, as the policy reads them."""
        return tasks.request(self.asked)

    def reset(self, seed: int, *, member: int = 0) -> str:
        self.asked = tasks.draw_part(
            Random(f"tool_test/{seed}"),
            self.names,
            counts=self._counts,
            arguments=self.arguments,
            held_out=is_evaluation_seed(seed),
        )
        self.made: list[Call] = []
        self.turns = 0
        self._reward_so_far = 0.0
        self._ended = False
        return tasks.request(self.asked)

    def step(self, reply: str) -> Step:
        self._require_running()
        calls = parse(reply)
        self.turns += 1
        if self.one_a_turn and calls:
            return self._take(calls)
        self.made += calls
        if not any(call.name for call in self.made):
            return self._finish(End.INVALID)
        return self._finish(End.WON if rewards.exact(self.asked, self.made) else End.LOST)

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED)

    def reply_from_input(self, text: str) -> str:
        """Accept a tool's name and JSON arguments, `say {"text": "yes"}`, or a whole reply."""
        name, _, arguments = text.strip().partition(" ")
        if name not in CATALOGUE:
            return text
        return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments or "{}"}}}\n</tool_call>'

    def _take(self, calls: Sequence[Call]) -> Step:
        """Play a turn with calls; of several calls in one turn none is carried out."""
        problem = _problem(calls)
        self.made += calls if len(calls) == 1 else [Call()] * len(calls)
        if self.turns == self.max_turns:
            return self._finish(End.TRUNCATED)
        answer = {"error": problem} if problem else {"result": "done"}
        return Step(observation=json.dumps(answer), role="tool", reward=self._gain())

    def _finish(self, end: End) -> Step:
        self._ended = True
        reward = self._gain(end)
        return Step(
            reward=reward,
            end=end,
            episode_reward=self._reward_so_far,
            metrics={
                "win": float(end is End.WON),
                "calls": float(len(self.made)),
                "right_names": rewards.right_names(self.asked, self.made),
                "right_arguments": rewards.right_arguments(self.asked, self.made),
                "right_calls": rewards.right_calls(self.asked, self.made),
                "unreadable_calls": float(sum(not call.name for call in self.made)),
            },
        )

    def _gain(self, end: End | None = None) -> float:
        """Return the change that this turn makes to the reward of the episode, if it ended now."""
        before, self._reward_so_far = self._reward_so_far, self._reward(end)
        return self._reward_so_far - before

    def _reward(self, end: End | None) -> float:
        return (
            self.exact_weight * (end is End.WON)
            + self.names_weight * rewards.right_names(self.asked, self.made)
            + self.arguments_weight * rewards.right_arguments(self.asked, self.made)
            + self.calls_weight * rewards.right_calls(self.asked, self.made)
        )


def _problem(calls: Sequence[Call]) -> str:
    """Return why the calls of a turn are not carried out, or an empty string if they are.

    It quotes nothing of the reply.
    """
    if len(calls) > 1:
        return "one call a turn"
    call = calls[0]
    if not call.name:
        return "the call cannot be read"
    if call.name not in CATALOGUE:
        return "there is no such tool"
    return CATALOGUE[call.name].problem(call.arguments)

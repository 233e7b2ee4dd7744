"""What a text environment is: settings, a seeded reset, a step from a reply to the next turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Any, ClassVar, Self


class End(StrEnum):
    """Why an episode ended."""

    WON = "won"
    LOST = "lost"
    INVALID = "invalid"  # the reply could not be read
    TRUNCATED = "truncated"  # a limit was hit: moves, tokens
    FAILED = "failed"  # the environment raised


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one reply leads to.

    `reward` belongs to this turn. The reward of the episode is the sum over its turns, unless the
    last step says otherwise in `episode_reward`. `metrics` are the episode's, given at its end.
    """

    observation: str = ""
    role: str = "user"  # "tool" when the observation is a tool's answer
    reward: float = 0.0
    end: End | None = None
    episode_reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Environment(ABC):
    """One task. A subclass is a dataclass of settings that can play: `reset`, then `step`s.

    An instance plays one episode at a time; `fresh()` gives another with the same settings.
    Settings are the dataclass's fields; state is set in `reset` as plain attributes.
    """

    # The model (a name in conf/model) that this environment is meant for on a GPU.
    recommended_model: ClassVar[str] = "qwen2_5_0_5b"
    # Whether its moves wait for others (a judge, a tool): then each is made in a thread, and
    # several instances move at once.
    is_slow: ClassVar[bool] = False
    # Scripted policies by name. "random" is required: replies in the right format, without skill;
    # "oracle" is the one that knows the answer, where there is one.
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = {}
    # What makes one attempt better than another, for a judge that compares them; empty: in general.
    rubric: ClassVar[str] = ""
    # Whether no episode is under way. Without a type, as it is state and no setting.
    _ended = True

    @property
    def system_prompt(self) -> str:
        """The system message; empty for none."""
        return ""

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """JSON schemas of the tools, as chat templates take them; None for none."""
        return None

    @property
    def earlier_turns_shown(self) -> int | None:
        """How many turns before the present one the policy sees; None for all of them."""
        return None

    @property
    def category(self) -> str:
        """The kind of the present episode's task, if there are several; results tell them apart."""
        return ""

    @abstractmethod
    def reset(self, seed: int, *, member: int = 0) -> str:
        """Begin the episode of `seed` and return the first observation.

        All members of a group get the same task; chance that comes later differs by `member`.
        An environment with data takes its held-out part when `is_evaluation_seed(seed)`.
        """

    @abstractmethod
    def step(self, reply: str) -> Step:
        """Play one reply. Any text leads to a defined step; nothing in it may raise."""

    def truncate(self) -> Step:
        """The step that ends an episode which a limit outside the environment has cut."""
        return Step(end=End.TRUNCATED)

    def reply_from_input(self, text: str) -> str:
        """The reply that a person means who types `text` (for `play`)."""
        return text

    def _require_running(self) -> None:
        """For the `step` and `truncate` of an environment that keeps `_ended`."""
        if self._ended:
            raise RuntimeError("episode is over: call reset")

    def fresh(self) -> Self:
        """Another instance with the same settings, before its first `reset`."""
        return replace(self)


# A scripted policy looks at the environment itself and draws from the generator it is given.
ScriptedPolicy = Callable[[Any, Random], str]


# Training seeds are even, evaluation seeds odd: no run can train on what it is evaluated on.
def training_seed(run_seed: int, index: int) -> int:
    """The seed of the `index`-th training task of a run: runs have ranges of 2^32 of their own."""
    return 2 * ((run_seed << 32) + index)


def evaluation_seed(index: int) -> int:
    """The seed of the `index`-th evaluation task: the same for every run and policy."""
    return 2 * index + 1


def is_evaluation_seed(seed: int) -> bool:
    return seed % 2 == 1

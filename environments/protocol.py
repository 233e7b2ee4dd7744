"""The interface of a text environment: settings, a seeded reset, and steps from reply to reply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Any, ClassVar, Protocol, Self


class End(StrEnum):
    """Why an episode ended."""

    WON = "won"
    LOST = "lost"
    INVALID = "invalid"  # the reply could not be read
    TRUNCATED = "truncated"  # the episode hit a limit, of moves or of tokens
    FAILED = "failed"  # the environment raised


@dataclass(frozen=True, kw_only=True)
class Step:
    """The outcome of one reply.

    `reward` is the reward of this turn. The reward of the episode is the sum over its turns, unless
    the last step sets `episode_reward`. `metrics` describe the whole episode and come at its end.
    """

    observation: str = ""
    role: str = "user"  # "tool" if the observation is the answer of a tool
    reward: float = 0.0
    end: End | None = None
    episode_reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Environment(ABC):
    """A task to play. A subclass is a dataclass whose fields are the environment's settings.

    An instance plays one episode at a time: `reset`, then `step` until a step has an `end`. The
    state of the episode is plain attributes that `reset` sets. `fresh()` returns another instance
    with the same settings.
    """

    # The model (a name in conf/model) to train on this environment on a GPU.
    recommended_model: ClassVar[str] = "qwen2_5_0_5b"
    # Whether `step` waits for something else, such as a judge or a tool. If so, each call runs in
    # a thread and several instances step at once.
    is_slow: ClassVar[bool] = False
    # Scripted policies by name. "random" is required: it replies in the right format, without
    # skill. "oracle" knows the answer; leave it out where nobody knows it.
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = {}
    # For a judge that compares attempts: what makes one better. Empty means in general.
    rubric: ClassVar[str] = ""
    # Whether no episode is running. It has no annotation, so that it does not become a setting.
    _ended = True

    @property
    def system_prompt(self) -> str:
        """The system message, or an empty string for none."""
        return ""

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The JSON schemas of the tools, as chat templates expect them, or None for no tools."""
        return None

    @property
    def earlier_turns_shown(self) -> int | None:
        """The number of turns before the current one that the policy sees; None means all."""
        return None

    @property
    def category(self) -> str:
        """The kind of the current task, if there are several; evaluation reports each kind."""
        return ""

    @property
    def task_key(self) -> str:
        """What tells the current task from others; empty if every seed has a task of its own.

        Where seeds draw from a limited number of tasks, an interval over many seeds claims no
        more than those tasks show.
        """
        return ""

    @abstractmethod
    def reset(self, seed: int, *, member: int = 0) -> str:
        """Begin the episode of `seed` and return its first observation.

        All members of a group get the same task. Chance after the start may differ by `member`.
        An environment with a data set uses its held-out part if `is_evaluation_seed(seed)`.
        """

    @abstractmethod
    def step(self, reply: str) -> Step:
        """Play one reply and return its outcome. It must not raise, whatever the text is."""

    def truncate(self) -> Step:
        """Return the last step of an episode that a limit outside the environment has ended."""
        return Step(end=End.TRUNCATED)

    def reply_from_input(self, text: str) -> str:
        """Return the reply that a person means who types `text` (used by `play`)."""
        return text

    def _require_running(self) -> None:
        """Raise `RuntimeError` if no episode runs; only for environments that set `_ended`."""
        if self._ended:
            raise RuntimeError("episode is over: call reset")

    def fresh(self) -> Self:
        """Return another instance with the same settings, on which `reset` is yet to be called."""
        return replace(self)


class ScriptedPolicy(Protocol):
    """A function that reads the public state of an environment and returns a reply.

    It may draw from the generator. A policy annotates `env` with the class of its environment.
    """

    def __call__(self, env: Any, rng: Random, /) -> str: ...


# Training seeds are even and evaluation seeds are odd, so no run trains on its evaluation tasks.
def training_seed(run_seed: int, index: int) -> int:
    """Return the seed of the training task `index`. Each run has its own range of 2^32 tasks."""
    return 2 * ((run_seed << 32) + index)


def evaluation_seed(index: int) -> int:
    """Return the seed of the evaluation task `index`, the same for every run and policy."""
    return 2 * index + 1


def is_evaluation_seed(seed: int) -> bool:
    """Return whether a seed is one of evaluation rather than training."""
    return seed % 2 == 1

"""Policies that are functions of an episode: their plays, timed, and how they did."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from environments import End, Environment, ScriptedPolicy
from rl_experiments.rollout.episodes import Episode, EpisodeSpec, Trajectory
from rl_experiments.stats import intervals
from rl_experiments.stats.intervals import Estimate

Policy = Callable[[Episode, Random], str]


class TimedEpisode(NamedTuple):
    trajectory: Trajectory
    seconds: float  # of the CPU, for the slowest step
    is_cut: bool

    @property
    def rewards(self) -> list[float]:
        """Of its turns, and of the episode if it has one."""
        whole = self.trajectory.reward
        turns = [turn.reward for turn in self.trajectory.turns]
        return turns if whole is None else [*turns, whole]


@dataclass
class Result:
    """How a policy did. `rewards` are by seed, None where there is no finite one."""

    rewards: list[float | None] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    first_reply: str = ""
    num_cut: int = 0
    num_turns: int = 0  # of the longest episode

    @property
    def mean(self) -> Estimate | None:
        found = [reward for reward in self.rewards if reward is not None]
        return intervals.mean(found) if found else None

    @property
    def worth(self) -> float:
        return self.mean.value if self.mean else -math.inf

    def add(self, play: TimedEpisode) -> None:
        trajectory = play.trajectory
        self.rewards.append(trajectory.reward if all(map(math.isfinite, play.rewards)) else None)
        self.ends[str(trajectory.end)] += 1
        self.first_reply = self.first_reply or "".join(turn.reply for turn in trajectory.turns[:1])
        self.num_cut += play.is_cut
        self.num_turns = max(self.num_turns, len(trajectory.turns))


def play(
    environment: Environment, policy: Policy, task: EpisodeSpec, *, name: str, turns: int
) -> TimedEpisode:
    episode = Episode(environment, task)
    rng = Random(f"{name}/{task.seed}/{task.member}")
    seconds = 0.0
    for _ in range(turns):
        if episode.over:
            break
        try:
            reply = policy(episode, rng)
        except Exception as error:
            episode.trajectory.end = End.FAILED
            episode.trajectory.error = f"the policy raises {type(error).__name__}: {error}"
            break
        started = time.thread_time()
        episode.reply(reply)
        seconds = max(seconds, time.thread_time() - started)
    is_cut = not episode.over
    if is_cut:
        episode.truncate()
    return TimedEpisode(episode.trajectory, seconds, is_cut)


def replay(environment: Environment, trajectory: Trajectory) -> TimedEpisode:
    """The same replies to a task again."""
    turns = trajectory.turns
    task = EpisodeSpec(trajectory.seed, trajectory.member)

    def policy(episode: Episode, _: Random) -> str:
        return turns[len(episode.trajectory.turns) - 1].reply

    return play(environment, policy, task, name="", turns=len(turns))


def by_script(script: ScriptedPolicy, episode: Episode, rng: Random) -> str:
    return script(episode.environment, rng)

"""Timed episodes of policies that are functions, and how such a policy did over many."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from environments import Environment, ScriptedPolicy
from rl_experiments.rollout.episode import Episode
from rl_experiments.rollout.types import EpisodeSpec, Trajectory
from rl_experiments.stats import intervals
from rl_experiments.stats.intervals import Estimate

# Returns the reply to an episode's last observation.
EpisodePolicy = Callable[[Episode, Random], str]


class TimedEpisode(NamedTuple):
    """An episode that was played to its end, or cut after a number of turns."""

    trajectory: Trajectory
    slowest_step_seconds: float  # of CPU time
    is_cut: bool

    @property
    def rewards(self) -> list[float]:
        """The rewards of the turns, and of the episode if it has one."""
        episode_reward = self.trajectory.reward
        turns = [turn.reward for turn in self.trajectory.turns]
        return turns if episode_reward is None else [*turns, episode_reward]


@dataclass
class AuditResult:
    """How a policy did over the episodes that were added.

    `rewards` has one entry an episode, in order; None where a reward is missing or not finite.
    """

    rewards: list[float | None] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)  # episodes by how they ended
    first_reply: str = ""
    num_cut: int = 0  # episodes that only a limit on turns ended
    max_turns: int = 0  # of the longest episode

    @property
    def mean(self) -> Estimate | None:
        """The mean of the finite rewards; None if there are none."""
        finite = [reward for reward in self.rewards if reward is not None]
        return intervals.mean(finite) if finite else None

    @property
    def ranking_value(self) -> float:
        """The mean of the finite rewards, to rank policies by; minus infinity if there are none."""
        return self.mean.value if self.mean else -math.inf

    def add(self, episode: TimedEpisode) -> None:
        """Count one more episode."""
        trajectory = episode.trajectory
        is_finite = all(map(math.isfinite, episode.rewards))
        self.rewards.append(trajectory.reward if is_finite else None)
        self.ends[str(trajectory.end)] += 1
        self.first_reply = self.first_reply or "".join(turn.reply for turn in trajectory.turns[:1])
        self.num_cut += episode.is_cut
        self.max_turns = max(self.max_turns, len(trajectory.turns))


def play_timed(
    environment: Environment, policy: EpisodePolicy, spec: EpisodeSpec, *, name: str, max_turns: int
) -> TimedEpisode:
    """Play one episode, truncated after `max_turns`; the policy draws from (name, seed, member).

    A policy that raises fails the episode.
    """
    episode = Episode(environment, spec)
    rng = Random(f"{name}/{spec.seed}/{spec.member}")
    slowest = 0.0
    for _ in range(max_turns):
        if episode.over:
            break
        try:
            reply = policy(episode, rng)
        except (Exception, SystemExit) as error:
            episode.fail(error, source="the policy raises")
            break
        started = time.thread_time()
        episode.reply(reply)
        slowest = max(slowest, time.thread_time() - started)
    is_cut = not episode.over
    if is_cut:
        episode.truncate()
    return TimedEpisode(episode.trajectory, slowest, is_cut)


def replay(environment: Environment, trajectory: Trajectory) -> TimedEpisode:
    """Play the task of a trajectory again with the same replies."""
    turns = trajectory.turns
    spec = EpisodeSpec(trajectory.seed, trajectory.member)

    def policy(episode: Episode, _: Random) -> str:
        return turns[len(episode.trajectory.turns) - 1].reply

    return play_timed(environment, policy, spec, name="", max_turns=len(turns))


def scripted(script: ScriptedPolicy) -> EpisodePolicy:
    """Return one of an environment's scripted policies as an `EpisodePolicy`."""
    return lambda episode, rng: script(episode.environment, rng)

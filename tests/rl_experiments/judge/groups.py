"""Groups of attempts that say what they are worth, and a judge over HTTP that scores them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from environments import End
from rl_experiments.config.schema import JudgeConfig, RulerConfig
from rl_experiments.judge.rewarder import Judge
from rl_experiments.rollout.types import Trajectory, Turn
from tests.fakes.openai_server import OpenAIServer

GROUP_SIZE = 4
Group = list[Trajectory]


def worth(text: str) -> float:
    """Return the number that an attempt says it is worth."""
    return float(re.findall(r"worth (0\.\d+)", text)[-1])


def attempt(seed: int, member: int, reply: str) -> Trajectory:
    turns = [Turn(f"task {seed}", reply="begin"), Turn("go on", reply=reply)]
    return Trajectory(seed, member, turns=turns, end=End.LOST, reward=float(member))


def group(seed: int) -> Group:
    """Return attempts of falling worth; the environment's rewards rise."""
    return [attempt(seed, m, f"worth 0.{seed % 100:02}{9 - m}") for m in range(GROUP_SIZE)]


def true_scores(members: Group) -> list[float]:
    return [worth(trajectory.turns[-1].reply) for trajectory in members]


@contextmanager
def running_judge(
    server: OpenAIServer, folder: Path, *, ruler: RulerConfig | None = None, **settings: Any
) -> Iterator[Judge]:
    """Yield a judge that asks the server; times are generous unless `settings` has others."""
    config = JudgeConfig(base_url=server.url, model="m", timeout=20.0, deadline=120.0)
    ruler = ruler or RulerConfig(enabled=True)
    judge = Judge(replace(config, **settings), ruler, rubric="", folder=folder)
    try:
        yield judge
    finally:
        judge.close()


def rewarded(judge: Judge, groups: list[Group]) -> list[Group]:
    """Return the groups after the judge rewarded them; their episodes end in any order."""
    episodes = [episode for members in groups for episode in members]
    for episode in Random(0).sample(episodes, len(episodes)):
        judge.add(episode, group_size=GROUP_SIZE)
    judge.reward(groups)
    return groups


def count_scored(groups: list[Group]) -> int:
    """Return how many groups have scores, after asserting that each has its own or none."""
    scored = 0
    for members in groups:
        scores = [trajectory.ruler_score for trajectory in members]
        assert scores in (true_scores(members), [None] * GROUP_SIZE)
        independent = [float(trajectory.member) for trajectory in members]
        assert [trajectory.independent_reward for trajectory in members] == independent
        has_scores = scores[0] is not None
        rewards = [trajectory.reward for trajectory in members]
        assert rewards == (true_scores(members) if has_scores else independent)
        scored += has_scores
    return scored

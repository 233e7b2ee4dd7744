"""The adapter of TextArena: games to their ends."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from environments import End
from environments.adapters import TextArena
from tests.environments.adapters.playing import SKILLLESS, needs, played, reward


@needs("textarena")
def test_a_game_is_played_to_its_end() -> None:
    env = TextArena()
    assert "between 1 and 20" in env.reset(4)
    low, high, observation = 1, 20, ""
    for _ in range(5):
        guess = (low + high) // 2
        step = env.step(f"<think>[1]</think>[{guess}]")
        if step.end:
            break
        low, high = (guess + 1, high) if "higher" in step.observation else (low, guess - 1)
        observation = step.observation
    assert (step.end, step.reward, step.metrics["win"]) == (End.WON, 1.0, 1.0)
    assert "You have to guess" not in observation  # what was shown before is not repeated
    rewards = [reward(played(env, "random", seed, rng=Random(seed))) for seed in range(60)]
    assert mean(rewards) < 0.5
    for reply in SKILLLESS:
        env.reset(1)
        assert env.step(reply).end is None  # the game forgives one
        last = env.step(reply)
        assert last.end is End.INVALID and last.reward == 0
    limited = TextArena(max_turns=1)
    limited.reset(2)
    assert limited.step("no number").end is End.TRUNCATED


@needs("textarena")
@pytest.mark.parametrize(
    "game", ["Countdown-v0", "TowerOfHanoi-v0", "Slitherlink-v0", "2048-v0-easy"]
)
def test_other_games_take_any_reply(game: str) -> None:
    for seed in range(5):
        steps = played(TextArena(game=game, max_turns=10), "random", seed, rng=Random(seed))
        assert steps[-1].end and -1 <= reward(steps) <= 1

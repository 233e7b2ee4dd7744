"""How long an environment takes for a turn: `python -m benchmarks.environment_cost`."""

from __future__ import annotations

from random import Random
from time import perf_counter

from environments import Environment, evaluation_seed
from environments.game2048 import Game2048


def environment_seconds_per_turn(env: Environment, episodes: int) -> float:
    """Mean seconds in `reset` and `step` (parsing, rules, rendering) a turn of uniform play."""
    policy = env.baselines["random"]
    rng = Random(0)
    turns, seconds = 0, 0.0
    for index in range(episodes):
        start = perf_counter()
        env.reset(evaluation_seed(index))
        seconds += perf_counter() - start
        end = None
        while end is None:
            reply = policy(env, rng)
            start = perf_counter()
            end = env.step(reply).end
            seconds += perf_counter() - start
            turns += 1
    return seconds / turns


def main() -> None:
    for hints in (False, True):
        seconds = environment_seconds_per_turn(Game2048(hints=hints), 300)
        print(f"game2048 hints={hints}: {seconds * 1e6:.1f} us a turn, {1 / seconds:,.0f} turns/s")


if __name__ == "__main__":
    main()

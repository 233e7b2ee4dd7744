"""What does an environment cost? Time of a turn, and its share of the rollouts of given runs.

python -m benchmarks.throughput.environment_cost [RUN_FOLDER ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from time import perf_counter

from environments import Environment, evaluation_seed
from environments.game2048 import Game2048


def environment_seconds_per_turn(env: Environment, episodes: int) -> float:
    """Return the seconds that `reset` and `step` take a turn, on average over random play."""
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


def share_of_rollouts(run: Path) -> float:
    """Return the environment's share, from 0 to 1, of the time that a run spent on rollouts."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    environment = sum(line["time/environment"] for line in lines)
    return float(environment / sum(line["time/rollout"] for line in lines))


def main() -> None:
    for hints in (False, True):
        seconds = environment_seconds_per_turn(Game2048(hints=hints), 300)
        print(f"game2048 hints={hints}: {seconds * 1e6:.1f} us a turn, {1 / seconds:,.0f} turns/s")
    for folder in sys.argv[1:]:
        print(f"{folder}: {share_of_rollouts(Path(folder)):.2%} of the rollouts' time")


if __name__ == "__main__":
    main()

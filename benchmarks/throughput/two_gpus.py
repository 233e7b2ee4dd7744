"""Two GPUs against one on the same batch, and a run in which one process has nothing to play.

python -m benchmarks.throughput.two_gpus SIZE [--parts one,two,early] [OVERRIDES...]

SIZE is 0.5b, 3b or small. --parts chooses among the three runs; in `early` all episodes of one
process end after their first move. Fails if two GPUs are not faster than one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import fmean

from benchmarks import _results as results
from benchmarks.models import SIZES

GROUPS = 8  # in a generation
GROUP_SIZE = 8  # episodes
EPISODES_PER_PASS = 16  # of a forward and backward pass, on all GPUs together
STEPS = 4
TIMEOUT_SECONDS = 400.0


def settings(size: str, gpus: int) -> list[str]:
    """Return settings with 64 episodes and one optimizer step a generation, whatever the GPUs."""
    passes = GROUPS * GROUP_SIZE // EPISODES_PER_PASS
    return [
        *results.model_overrides(size),
        *results.ART_RULES,
        *("env.max_moves=30", "model.max_length=4096", "trainer.max_completion_length=16"),
        *("gpu=local", f"gpu.count={gpus}", f"trainer.num_generations={GROUP_SIZE}"),
        f"trainer.per_device_train_batch_size={EPISODES_PER_PASS // gpus}",
        *(
            f"trainer.{key}={passes}"
            for key in ("gradient_accumulation_steps", "steps_per_generation")
        ),
        *(f"trainer.max_steps={STEPS}", f"checkpoint.every_steps={STEPS}", "num_examples=8"),
    ]


def seconds_per_step(name: str, overrides: Sequence[str]) -> float:
    """Train, and return the mean seconds of a step; the first step does not count."""
    run = results.train(name, overrides, timeout_seconds=TIMEOUT_SECONDS)
    lines = results.metrics(run)[1:]
    step, rollout = (fmean(line[f"time/{key}"] for line in lines) for key in ("step", "rollout"))
    print(f"{name}: {step:.2f} s a step, {1 / step:.3f} steps/s, {rollout:.2f} s of it rollout")
    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--parts", default="one,two,early")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    early = ["env._target_=benchmarks.environments.EndsAtOnce", f"+env.groups={GROUPS // 2}"]
    parts = {"one": (1, []), "two": (2, []), "early": (2, early)}
    seconds = {}
    for part in arguments.parts.split(","):
        gpus, extra = parts[part]
        words = [*settings(arguments.size, gpus), *extra, *arguments.overrides]
        seconds[part] = seconds_per_step(f"gpus-{part}", words)
    if {"one", "two"} <= seconds.keys():
        print(f"two GPUs are {seconds['one'] / seconds['two']:.2f} times as fast as one")
        sys.exit(seconds["two"] >= seconds["one"])


if __name__ == "__main__":
    main()

"""Two GPUs against one on the same batch, and one process whose episodes end at once.

python -m benchmarks.two_gpus SIZE [--parts one,two,early] [OVERRIDES...]

SIZE: 0.5b, 3b or small; parts: those of the three runs that are wanted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import fmean

from benchmarks import runs
from benchmarks.models import SIZES

GROUPS, GROUP, ROWS = 8, 8, 16  # of a generation; episodes in one; episodes a pass, all GPUs
STEPS = 4
PATIENCE = 400.0  # seconds


def settings(size: str, gpus: int) -> list[str]:
    """64 episodes and one optimizer step a generation, however many GPUs share them."""
    passes = GROUPS * GROUP // ROWS
    return [
        *runs.model(size),
        *runs.RULES_ART,
        *("env.max_moves=30", "model.max_length=4096", "trainer.max_completion_length=16"),
        *("gpu=local", f"gpu.count={gpus}", f"trainer.num_generations={GROUP}"),
        f"trainer.per_device_train_batch_size={ROWS // gpus}",
        *(
            f"trainer.{key}={passes}"
            for key in ("gradient_accumulation_steps", "steps_per_generation")
        ),
        *(f"trainer.max_steps={STEPS}", f"checkpoint.every_steps={STEPS}", "num_examples=8"),
    ]


def seconds(what: str, overrides: Sequence[str]) -> float:
    """A step's seconds, without the first."""
    run = runs.train(what, overrides, timeout=PATIENCE)
    lines = runs.metrics(run)[1:]
    step, rollout = (fmean(line[f"time/{key}"] for line in lines) for key in ("step", "rollout"))
    print(f"{what}: {step:.2f} s a step, {1 / step:.3f} steps/s, {rollout:.2f} s of it rollout")
    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--parts", default="one,two,early")
    parser.add_argument("overrides", nargs="*")
    told = parser.parse_intermixed_args()
    early = ["env._target_=benchmarks.environments.EndsAtOnce", f"+env.groups={GROUPS // 2}"]
    runs_of = {"one": (1, []), "two": (2, []), "early": (2, early)}
    found = {}
    for part in told.parts.split(","):
        gpus, own = runs_of[part]
        found[part] = seconds(f"gpus-{part}", [*settings(told.size, gpus), *own, *told.overrides])
    if {"one", "two"} <= found.keys():
        print(f"two GPUs are {found['one'] / found['two']:.2f} times as fast as one")
        sys.exit(found["two"] >= found["one"])


if __name__ == "__main__":
    main()

"""Two GPUs against one on the same batch, and one process whose episodes end at once.

python -m benchmarks.two_gpus SIZE [OVERRIDES...]        (0.5b, 3b or small)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import fmean

from benchmarks import runs

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
    size, overrides = sys.argv[1], sys.argv[2:]
    one = seconds("one-gpu", [*settings(size, 1), *overrides])
    two = seconds("two-gpus", [*settings(size, 2), *overrides])
    print(f"two GPUs are {one / two:.2f} times as fast as one")
    short = [
        *settings(size, 2),
        "env._target_=benchmarks.environments.EndsAtOnce",
        f"+env.groups={GROUPS // 2}",
    ]
    seconds("second-ends-at-once", [*short, *overrides])
    sys.exit(two >= one)


if __name__ == "__main__":
    main()

"""Does a run stop if the engine's weights are frozen? A planted fault, and which check detects it.

python -m benchmarks.resilience.sync_fault [SIZE] [OVERRIDES...]     (default 0.5b; needs vLLM)

In the case `frozen` the engine keeps its first weights. In the case `blind`, in addition, the
comparison of the tensors reports no difference, so that only log-probabilities can reveal the
fault.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from benchmarks import _results as results
from benchmarks.models import SIZES
from rl_experiments import cli
from rl_experiments.inference import weight_sync

_PLANTED = "SYNC_FAULT"
EXPECTED_MESSAGES = {
    "frozen": "The engine's weights are not the policy's after a sync",
    "blind": "(not the policy after a weight sync|sampler and the trainer disagree)",
}


def main() -> None:
    if _PLANTED in os.environ:
        plant(os.environ[_PLANTED])
        cli.main()
        return
    words = sys.argv[1:]
    size = words.pop(0) if words and words[0] in SIZES else "0.5b"
    missed = [case for case in EXPECTED_MESSAGES if not stops(case, size, words)]
    sys.exit(bool(missed))


def plant(case: str) -> None:
    """Plant the fault of a case in this process."""
    load, loads = weight_sync.load_weights, 0

    def once(network: Any, model: Any) -> None:
        nonlocal loads
        loads += 1
        if loads == 1:
            load(network, model)

    weight_sync.load_weights = once
    if case == "blind":
        weight_sync.differing_weights = lambda *_: []


def stops(case: str, size: str, overrides: list[str]) -> bool:
    """Train with the fault, print the outcome, and return whether the right check stopped it."""
    name = results.unique_name(f"fault-{case}")
    settings = [
        *(f"name={name}", "sampler=vllm", *results.model_overrides(size), *results.ART_RULES),
        "hydra.launcher.backend=debug",  # in this very process, where the fault is planted
        *("env.max_moves=20", "env.earlier_turns=4", "model.max_length=2048"),
        # The fault shows only after the weights have changed.
        *("trainer.learning_rate=1e-3", "trainer.max_grad_norm=1.0", "trainer.max_steps=24"),
        *("trainer.num_generations=8", "trainer.per_device_train_batch_size=8"),
        *("trainer.gradient_accumulation_steps=4", "trainer.max_completion_length=16"),
        *("checkpoint.every_steps=24", "num_examples=4", *overrides),
    ]
    command = [sys.executable, "-m", "benchmarks.resilience.sync_fault", *settings]
    environment = {**os.environ, _PLANTED: case}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    run = results.run_folder(name)
    steps = results.metrics(run)[-1]["step"] if (run / "metrics.jsonl").exists() else 0
    output = " ".join((ended.stdout + ended.stderr).split())
    stopped = ended.returncode != 0 and re.search(EXPECTED_MESSAGES[case], output) is not None
    print(f"{case}: stopped after {steps} steps: {stopped}; output: {output[-600:]}")
    return stopped


if __name__ == "__main__":
    main()

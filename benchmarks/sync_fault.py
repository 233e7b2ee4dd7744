"""Whether frozen weights of the engine stop a run: a planted fault, and who finds it.

python -m benchmarks.sync_fault [SIZE] [OVERRIDES...]        (0.5b; needs vLLM)

`frozen`: the engine keeps its first weights. `blind`: and their comparison, tensor by tensor, finds
nothing, so that only log-probabilities can tell.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from benchmarks import runs
from benchmarks.models import SIZES
from rl_experiments import cli
from rl_experiments.inference import vllm_colocated as vllm_engine

_PLANTED = "SYNC_FAULT"
SAID = {
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
    missed = [case for case in SAID if not stops(case, size, words)]
    sys.exit(bool(missed))


def plant(case: str) -> None:
    """Put the fault in this process."""
    load, loads = vllm_engine._load, 0

    def once(engine: Any, model: Any) -> None:
        nonlocal loads
        loads += 1
        if loads == 1:
            load(engine, model)

    vllm_engine._load = once
    if case == "blind":
        vllm_engine._different = lambda *_: []


def stops(case: str, size: str, overrides: list[str]) -> bool:
    """Whether training with the fault ends as it should; prints how."""
    name = runs.name_of(f"fault-{case}")
    settings = [
        *(f"name={name}", "sampler=vllm", *runs.model(size), *runs.RULES_ART),
        *("env.max_moves=20", "env.earlier_turns=4", "model.max_length=2048"),
        # An untouched engine is found out only once the weights have moved.
        *("trainer.learning_rate=1e-3", "trainer.max_grad_norm=1.0", "trainer.max_steps=24"),
        *("trainer.num_generations=8", "trainer.per_device_train_batch_size=8"),
        *("trainer.gradient_accumulation_steps=4", "trainer.max_completion_length=16"),
        *("checkpoint.every_steps=24", "num_examples=4", *overrides),
    ]
    command = [sys.executable, "-m", "benchmarks.sync_fault", *settings]
    environment = {**os.environ, _PLANTED: case}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    run = runs.folder(name)
    steps = runs.metrics(run)[-1]["step"] if (run / "metrics.jsonl").exists() else 0
    told = " ".join((ended.stdout + ended.stderr).split())
    found = ended.returncode != 0 and re.search(SAID[case], told)
    print(f"{case}: stopped after {steps} steps: {found is not None}; it said: {told[-600:]}")
    return bool(found)


if __name__ == "__main__":
    main()

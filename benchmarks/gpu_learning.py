"""Whether GRPO teaches a model of real size on a GPU, played by vLLM with synced weights.

python -m benchmarks.gpu_learning full|lora [OVERRIDES...]

The architecture of Qwen2.5-0.5B made at random, on the tiny model's task. Fails if the intervals of
the win rate before and after touch, or if sampler and trainer differ by 0.02 on average.
"""

from __future__ import annotations

import sys
import time
from statistics import fmean

from benchmarks import runs
from benchmarks.models import SIZES

MOST_DIFFERENCE = 0.02  # mean log-probability, nats
KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "vocab_size",
    "initializer_range",
    "warmup_learning_rate",
)
SETTINGS = [
    *("model=tiny", "sampler=vllm", "model.name=scratch_0_5b", "model.dtype=bfloat16"),
    *(f"model.scratch.{key}={getattr(SIZES['0.5b'], key)}" for key in KEYS),
    *runs.EASY,
    # 64 episodes a generation, in groups of 8; 8 updates of them.
    *("trainer.max_steps=88", "checkpoint.every_steps=88", "num_examples=400"),
]
KINDS = {
    "full": ["model.lora.enabled=false", "trainer.learning_rate=1e-4"],
    "lora": ["model.lora.enabled=true", "trainer.learning_rate=2e-3"],
}


def main() -> None:
    kind, overrides = sys.argv[1], sys.argv[2:]
    started = time.monotonic()
    run = runs.train(f"learning-{kind}", [*SETTINGS, *KINDS[kind], *overrides])
    minutes = (time.monotonic() - started) / 60
    rates = {name: policy["win_rate"] for name, policy in runs.policies(run).items()}
    for name, rate in rates.items():
        print(f"{name:<14} {runs.shown(rate)}")
    lines = runs.metrics(run)
    differences = {}
    for what in ("sampling", "sync"):
        key = f"sampling/{what}_logp_difference/mean"
        values = [line[key] for line in lines if key in line]
        if values:  # a sync needs an engine
            differences[what] = fmean(values)
            print(f"{key}: mean {fmean(values):.4f}, largest {max(values):.4f}")
    print(
        f"{kind}: {minutes:.1f} minutes, {lines[-1]['step']} steps, "
        f"{fmean(line['time/step'] for line in lines):.2f} s each; {run}"
    )
    apart = rates["before"]["high"] < rates["after"]["low"]
    sys.exit(not apart or max(differences.values()) >= MOST_DIFFERENCE)


if __name__ == "__main__":
    main()

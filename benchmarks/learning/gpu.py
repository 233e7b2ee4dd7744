"""Does GRPO teach a model of real size on a GPU, with vLLM as the sampler and weight sync?

python -m benchmarks.learning.gpu full|lora [OVERRIDES...]

The model has the architecture of Qwen2.5-0.5B and random weights; the task is that of the tiny
model. Fails if the intervals of the win rate before and after touch, or if the log-probabilities of
sampler and trainer differ by 0.02 on average.
"""

from __future__ import annotations

import sys
import time
from statistics import fmean

from benchmarks import _results as results
from benchmarks.models import SIZES

MAX_LOGP_DIFFERENCE = 0.02  # nats, mean over tokens
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
    *results.EASY_2048,
    # Each generation has 64 episodes in groups of 8, and 8 updates follow it.
    *("trainer.max_steps=88", "checkpoint.every_steps=88", "num_examples=400"),
]
KINDS = {
    "full": ["model.lora.enabled=false", "trainer.learning_rate=1e-4"],
    "lora": ["model.lora.enabled=true", "trainer.learning_rate=2e-3"],
}


def main() -> None:
    kind, overrides = sys.argv[1], sys.argv[2:]
    started = time.monotonic()
    run = results.train(f"learning-{kind}", [*SETTINGS, *KINDS[kind], *overrides])
    minutes = (time.monotonic() - started) / 60
    rates = {name: policy["win_rate"] for name, policy in results.policies(run).items()}
    for name, rate in rates.items():
        print(f"{name:<14} {results.format_estimate(rate)}")
    lines = results.metrics(run)
    differences = {}
    for what in ("sampling", "sync"):
        key = f"sampling/{what}_logp_difference/mean"
        values = [line[key] for line in lines if key in line]
        if values:  # without an engine there is no sync to compare
            differences[what] = fmean(values)
            print(f"{key}: mean {fmean(values):.4f}, largest {max(values):.4f}")
    print(
        f"{kind}: {minutes:.1f} minutes, {lines[-1]['step']} steps, "
        f"{fmean(line['time/step'] for line in lines):.2f} s each; {run}"
    )
    apart = rates["before"]["high"] < rates["after"]["low"]
    sys.exit(not apart or max(differences.values()) >= MAX_LOGP_DIFFERENCE)


if __name__ == "__main__":
    main()

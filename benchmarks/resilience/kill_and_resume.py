"""Does a killed run continue where it stopped? Its metrics around the kill.

python -m benchmarks.resilience.kill_and_resume SIZE [OVERRIDES...]    (SIZE: 0.5b, 3b or small)

Fails if a step is missing or logged twice, or if the lines from before the kill have changed.
"""

from __future__ import annotations

import math
import sys
import time

from benchmarks import _results as results
from rl_experiments.paths import MANIFEST_FILE

KILLED_AFTER = 3  # steps; each step is a generation and writes a checkpoint
STEPS = 6
TIMEOUT_SECONDS = 400.0


def main() -> None:
    size, overrides = sys.argv[1], sys.argv[2:]
    settings = [
        *results.model_overrides(size),
        *results.ART_RULES,
        *("env.max_moves=10", "env.earlier_turns=4", "model.max_length=2048"),
        *("trainer.num_generations=8", "trainer.per_device_train_batch_size=8"),
        *("trainer.gradient_accumulation_steps=4", "trainer.max_completion_length=16"),
        *(f"trainer.max_steps={STEPS}", "checkpoint.every_steps=1", "num_examples=4"),
        *overrides,
    ]
    name = results.unique_name("killed")
    run = results.run_folder(name)
    process = results.start(name, settings)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (run / "checkpoints" / f"checkpoint-{KILLED_AFTER}" / MANIFEST_FILE).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            results.kill(process)
            sys.exit(f"{results.read_output(name)[-4000:]}\nno checkpoint of step {KILLED_AFTER}")
        time.sleep(0.05)
    results.kill(process)
    before = results.metrics(run)
    started = time.monotonic()
    results.finish(results.start(name, [*settings, "resume=true"]), name)
    after = results.metrics(run)
    kept = [line["step"] for line in before]
    print(f"killed with steps {kept} logged, resumed in {time.monotonic() - started:.0f} s; {run}")
    for line in after:
        print(f"step {line['step']}  reward {line['reward']:.3f}  turns {line['turns']:.1f}")
    whole = [line["step"] for line in after] == list(range(1, STEPS + 1))
    same = after[:KILLED_AFTER] == before[:KILLED_AFTER]
    finite = all(math.isfinite(line["reward"]) for line in after)
    print(f"no gap or duplicate: {whole}; the lines before the kill as they were: {same}")
    sys.exit(not (whole and same and finite))


if __name__ == "__main__":
    main()

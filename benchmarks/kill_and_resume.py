"""Whether a run that is killed goes on as if it had not been: the curve around the kill.

python -m benchmarks.kill_and_resume SIZE [OVERRIDES...]        (0.5b, 3b or small)
"""

from __future__ import annotations

import math
import sys
import time

from benchmarks import runs
from rl_experiments.checkpoints import local as checkpoint

KILLED_AFTER = 3  # generations, each of one step with a checkpoint
STEPS = 6
PATIENCE = 400.0  # seconds


def main() -> None:
    size, overrides = sys.argv[1], sys.argv[2:]
    settings = [
        *runs.model(size),
        *runs.RULES_ART,
        *("env.max_moves=10", "env.earlier_turns=4", "model.max_length=2048"),
        *("trainer.num_generations=8", "trainer.per_device_train_batch_size=8"),
        *("trainer.gradient_accumulation_steps=4", "trainer.max_completion_length=16"),
        *(f"trainer.max_steps={STEPS}", "checkpoint.every_steps=1", "num_examples=4"),
        *overrides,
    ]
    name = runs.name_of("killed")
    run = runs.folder(name)
    process = runs.start(name, settings)
    waited = time.monotonic() + PATIENCE
    while not (run / "checkpoints" / f"checkpoint-{KILLED_AFTER}" / checkpoint.MANIFEST).exists():
        if process.poll() is not None or time.monotonic() > waited:
            runs.kill(process)
            sys.exit(f"{runs.output(name)[-4000:]}\nno checkpoint of step {KILLED_AFTER}")
        time.sleep(0.05)
    runs.kill(process)
    before = runs.metrics(run)
    started = time.monotonic()
    runs.finish(runs.start(name, [*settings, "resume=true"]), name)
    after = runs.metrics(run)
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

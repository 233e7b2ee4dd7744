"""Does the tiny model learn Wordle, whatever the seed? Win rate before and after training.

python -m benchmarks.learning.wordle [SEED ...]  (default 0 1 2; three minutes a seed on two cores)

The task is that of conf/preset/wordle_tiny.yaml. Fails if the intervals before and after touch.
"""

from __future__ import annotations

import sys
import time

from benchmarks import _results as results


def main() -> None:
    failed = False
    for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]:
        started = time.monotonic()
        overrides = ["env=wordle", f"seed={seed}"]
        run = results.train(f"wordle-seed{seed}", overrides, timeout_seconds=3600)
        seconds = time.monotonic() - started
        rates = {name: policy["win_rate"] for name, policy in results.policies(run).items()}
        apart = rates["before"]["high"] < rates["after"]["low"]
        failed |= not apart
        print(f"seed {seed}: intervals {'apart' if apart else 'touch'}; {seconds:.0f} s; {run}")
        for name, rate in rates.items():
            print(f"  {name:<18} {results.format_estimate(rate)}")
        sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()

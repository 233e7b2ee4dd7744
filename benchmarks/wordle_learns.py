"""Whether the tiny model learns Wordle, whatever the seed: its win rate before and after.

python -m benchmarks.wordle_learns [SEED ...]        (0 1 2; three minutes a seed on two cores)

It plays conf/preset/wordle_tiny.yaml. Fails if the intervals of before and after touch.
"""

from __future__ import annotations

import sys
import time

from benchmarks import runs


def main() -> None:
    failed = False
    for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]:
        started = time.monotonic()
        run = runs.train(f"wordle-seed{seed}", ["env=wordle", f"seed={seed}"], timeout=3600)
        seconds = time.monotonic() - started
        rates = {name: policy["win_rate"] for name, policy in runs.policies(run).items()}
        apart = rates["before"]["high"] < rates["after"]["low"]
        failed |= not apart
        print(f"seed {seed}: intervals {'apart' if apart else 'touch'}; {seconds:.0f} s; {run}")
        for name, rate in rates.items():
            print(f"  {name:<18} {runs.shown(rate)}")
        sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()

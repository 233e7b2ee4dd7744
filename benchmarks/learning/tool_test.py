"""Does the tiny model learn the tool test, whatever the seed? Reward before and after training.

python -m benchmarks.learning.tool_test [SEED ...]     (default 0 1 2; about three minutes a seed)

Fails if the intervals of the mean reward on 1,000 unseen seeds touch.
"""

from __future__ import annotations

import sys
import time

from benchmarks import _results as results
from benchmarks._results import format_estimate


def main() -> None:
    failed = False
    for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]:
        started = time.monotonic()
        overrides = ["env=tool_test", "model=tiny", f"seed={seed}"]
        run = results.train(f"tool-test-{seed}", overrides, timeout_seconds=3600)
        policies = results.policies(run)
        before, after = policies["before"], policies["after"]
        apart = before["reward"]["high"] < after["reward"]["low"]
        failed |= not apart
        print(
            f"seed {seed}: reward {format_estimate(before['reward'])}, "
            f"after {format_estimate(after['reward'])}; "
            f"exact {format_estimate(before['win_rate'])}, "
            f"after {format_estimate(after['win_rate'])}; "
            f"intervals {'apart' if apart else 'touch'}; {time.monotonic() - started:.0f} s",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()

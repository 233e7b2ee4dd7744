"""Whether the tiny model learns the tool test, whatever the seed: its reward before and after.

python -m benchmarks.tool_test_learns [SEED ...]        (0 1 2; about three minutes a seed)

Fails if the intervals of the mean reward on 1,000 unseen seeds touch.
"""

from __future__ import annotations

import sys
import time

from benchmarks import runs
from benchmarks.runs import shown


def main() -> None:
    failed = False
    for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]:
        started = time.monotonic()
        overrides = ["env=tool_test", "model=tiny", f"seed={seed}"]
        run = runs.train(f"tool-test-{seed}", overrides, timeout=3600)
        found = runs.policies(run)
        before, after = found["before"], found["after"]
        apart = before["reward"]["high"] < after["reward"]["low"]
        failed |= not apart
        print(
            f"seed {seed}: reward {shown(before['reward'])}, after {shown(after['reward'])}; "
            f"exact {shown(before['win_rate'])}, after {shown(after['win_rate'])}; "
            f"intervals {'apart' if apart else 'touch'}; {time.monotonic() - started:.0f} s",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()

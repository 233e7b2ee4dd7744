"""Compares the metrics of two runs bit for bit, leaving out what a clock measured.

python -m benchmarks.same_metrics RUN_A RUN_B

RUN_A and RUN_B are run folders, such as runs/x/0, or metrics.jsonl files. Prints the first
difference and exits with status 1 if there is one. Equal metrics need the same machine, the same
libraries and OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import json
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

_WALL_CLOCK_PREFIXES = ("time/", "perf/", "gpu/")
_WALL_CLOCK_NAMES = ("timestamp", "started")

Metrics = dict[str, Any]


def read_metrics(run: Path) -> list[Metrics]:
    """Return the metrics of each logged step without those that a clock measured."""
    file = run / "metrics.jsonl" if run.is_dir() else run
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not name.startswith(_WALL_CLOCK_PREFIXES) and name not in _WALL_CLOCK_NAMES
        }
        for line in file.read_text().splitlines()
    ]


def first_difference(first: list[Metrics], second: list[Metrics]) -> str | None:
    """Return the first difference in words; None if all metrics are equal."""
    for number, (a, b) in enumerate(zip_longest(first, second), 1):
        if a is None or b is None:
            return f"line {number}: one run has {len(first)} lines, the other {len(second)}"
        for name in sorted(a.keys() | b.keys()):
            # As text, so that NaN equals NaN and -0.0 does not equal 0.0.
            values = [
                json.dumps(metrics[name]) if name in metrics else "absent" for metrics in (a, b)
            ]
            if values[0] != values[1]:
                return f"line {number} (step {a.get('step')}), {name}: {values[0]} and {values[1]}"
    return None


def main() -> int:
    """Compare the two runs of the command line."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    first, second = (read_metrics(Path(argument)) for argument in sys.argv[1:])
    difference = first_difference(first, second)
    names = {name for metrics in first for name in metrics}
    print(difference or f"the same: {len(first)} lines, {len(names)} metrics")
    return 1 if difference or not first else 0


if __name__ == "__main__":
    sys.exit(main())

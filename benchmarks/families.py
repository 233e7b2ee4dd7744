"""Runs all 96 cases of families, weights, forms and turns; the tests run 24 that cover the pairs.

    python -m benchmarks.families

Measured on one core: 96 of 96 cases hold; 170 s of CPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from pathlib import Path

from rl_experiments.models.loading import quiet_libraries
from tests.support.family_runs import all_cases, run


def main() -> None:
    """Run each case in a folder of its own; exit with 1 if one fails."""
    quiet_libraries()
    failed, cases = 0, list(all_cases())
    started = time.process_time()
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(case, Path(folder))
                outcome = "refused, as it must be" if case.refusal else "ok"
            except Exception:
                outcome, failed = traceback.format_exc(), failed + 1
        print(f"{case}: {outcome}", flush=True)
    seconds = time.process_time() - started
    print(f"{len(cases) - failed} of {len(cases)} cases hold; {seconds:.0f} s of CPU")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

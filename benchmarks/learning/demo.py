"""Does the demo learn, whatever the seed? Win rate on unseen seeds, before and after training.

python -m benchmarks.learning.demo [SEED ...]      (default 0 1 2; four minutes a seed on two cores)

Fails if a gain is below 0.30, or if the intervals before and after overlap.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._results import format_estimate

MIN_GAIN = 0.30


def demo(seed: int) -> dict[str, Any]:
    """Run the demo and return its evaluation, with the seconds of the whole and of training."""
    name = f"demo-{time.strftime('%m%d-%H%M%S')}-seed{seed}"
    started = time.monotonic()
    command = [sys.executable, "-m", "rl_experiments", f"name={name}", f"seed={seed}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = Path("runs") / name / "0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        **json.loads((run / "evaluation.json").read_text()),
        "seconds": time.monotonic() - started,
        "training": sum(line["time/step"] for line in lines) * (lines[0]["step"]),
    }


def main() -> None:
    failed = False
    for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]:
        result = demo(seed)
        rates = {p["policy"]: p["win_rate"] for p in result["policies"]}
        before, after, gain = rates["before"], rates["after"], result["after - before"]["win_rate"]
        apart = before["high"] < after["low"]
        failed |= gain["value"] < MIN_GAIN or not apart
        print(
            f"seed {seed}: before {format_estimate(before)}, after {format_estimate(after)}, "
            f"paired {format_estimate(gain)}; intervals {'apart' if apart else 'overlap'}; "
            f"{result['seconds']:.0f} s in all, {result['training']:.0f} s of training",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()

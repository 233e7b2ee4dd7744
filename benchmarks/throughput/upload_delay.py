"""What do uploads cost training? Time of a step with a checkpoint store, and without one.

python -m benchmarks.throughput.upload_delay [PAIRS] [OVERRIDES...]

PAIRS of runs are compared (default 3; five minutes on two cores). Every few seconds a checkpoint of
2 million weights with its optimizer (24 MB) goes to an S3 server (rclone) on this machine. The
server has a core of its own, because it stands for another machine. Fails if the median step takes
5 % longer with the store.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import _results as results
from tests.support.stores import KEY, SECRET, rclone_server

MAX_SLOWDOWN = 0.05
SETTINGS = [
    *("model.scratch.hidden_size=256", "model.scratch.intermediate_size=512"),
    *("model.scratch.num_hidden_layers=3", "model.scratch.num_attention_heads=4"),
    *("model.scratch.head_dim=64", "model.scratch.warmup_steps=20", "num_examples=8"),
    *("trainer.num_generations=8", "trainer.per_device_train_batch_size=8"),
    *("trainer.steps_per_generation=2", "trainer.max_steps=24", "checkpoint.every_steps=2"),
    "checks.patience=99",
]


def main() -> None:
    pairs = int(sys.argv[1]) if sys.argv[1:] else 3
    settings = [*SETTINGS, *sys.argv[2:]]
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    *training, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {last})
    with tempfile.TemporaryDirectory() as folder, rclone_server(Path(folder)) as address:
        os.sched_setaffinity(0, training or {last})
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        for _ in range(pairs):
            for kind, measured in seconds.items():
                store = ["checkpoint.store=s3://bucket/prefix"] if kind == "with" else []
                run = results.train(f"upload-{kind}", [*settings, *store])
                # During the first generation there is nothing to upload yet.
                measured += [line["time/total"] for line in results.metrics(run)[1:]]
        stored = list(Path(folder).rglob("manifest.json"))
    for kind, measured in seconds.items():
        print(f"{kind} a store: median {median(measured):.2f} s a generation of {len(measured)}")
    longer = median(seconds["with"]) / median(seconds["without"]) - 1
    print(f"{longer:+.1%}; {len(stored)} checkpoints are in the store")
    sys.exit(longer >= MAX_SLOWDOWN or len(stored) != 2 * pairs)


if __name__ == "__main__":
    main()

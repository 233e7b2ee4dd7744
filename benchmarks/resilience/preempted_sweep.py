"""Do all jobs of a sweep finish on the stand-in for Modal if a fifth of the attempts is preempted?

python -m benchmarks.resilience.preempted_sweep [JOBS]     (default 12; 6 minutes on two cores)

Each job trains the tiny model and copies its checkpoints to an S3 server, which fails a tenth of
the requests. Fails if a job is missing, if a checkpoint is missing from the store, or if the
results differ from those without preemptions.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _results as results
from tests.fakes.control_plane import ControlPlane, Settings
from tests.support.faults import FaultProxy
from tests.support.program import SMALL, command
from tests.support.stores import KEY, SECRET, bucket_of, moto_server

PREEMPTED_SHARE = 0.2  # of the attempts
PREEMPTED_AFTER_SECONDS = (2.0, 14.0)
FAULT_SHARE = 0.1  # of the requests to the S3 server
STEPS = 16


def main() -> None:
    logging.getLogger("grpclib").setLevel(
        logging.CRITICAL
    )  # it logs clients that hang up in mid-stream
    jobs = int(sys.argv[1]) if sys.argv[1:] else 12
    settings = [
        *(*SMALL, "model=tiny", f"trainer.max_steps={STEPS}", "num_examples=8"),
        *(f"seed=range({jobs})", "checkpoint.keep_latest=1000", "checks.patience=99"),
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    undisturbed = results.run_folder(sweep(settings, "undisturbed"))
    with (
        tempfile.TemporaryDirectory() as temporary,
        ControlPlane(Path(temporary) / "plane", Settings()) as plane,
        moto_server() as server,
        FaultProxy(server) as proxy,
    ):
        plane.preempt_share(PREEMPTED_SHARE, seed=6, after=PREEMPTED_AFTER_SECONDS)
        os.environ |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        bucket_of(proxy.url).create()
        proxy.rate, proxy.slow_seconds = FAULT_SHARE, 0.1
        mounts = [f"hydra.launcher.volumes.{v}={temporary}/{v}" for v in ("cache", "outputs")]
        parallel = [
            *("hydra.launcher.max_parallel=2", "checkpoint.store=s3://bucket/prefix"),
            # The same number of threads as on this machine, so that sums are equal.
            "+hydra.launcher.image.env.OMP_NUM_THREADS='1'",
        ]
        begun = time.monotonic()
        preempted_run = results.run_folder(
            sweep([*settings, "gpu=a10g", *mounts, *parallel], "preempted", **plane.environment)
        )
        proxy.rate = 0.0
        calls = plane.state.calls.values()
        preemptions = sum(a.ending == "preempted" for call in calls for a in call.attempts)
        keys = [stored.key for stored in bucket_of(proxy.url).objects.all()]
    manifests = sum(key.endswith("manifest.json") for key in keys)
    same = [
        results.reproducible_results(undisturbed.parent / str(n))
        == results.reproducible_results(preempted_run.parent / str(n))
        for n in range(jobs)
    ]
    print(
        f"{sum(same)} of {jobs} jobs as undisturbed after {preemptions} preemptions, "
        f"{time.monotonic() - begun:.0f} s; {manifests} of {jobs * STEPS // 2} checkpoints stored"
    )
    sys.exit(not (all(same) and preemptions and manifests == jobs * STEPS // 2))


def sweep(settings: list[str], prefix: str, **variables: str) -> str:
    """Run a sweep to its end and return its name; exit the benchmark if it fails."""
    name = results.unique_name(prefix)
    words = command([*settings, f"name={name}"])
    ended = subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{ended.stdout[-4000:]}\n{ended.stderr[-2000:]}")
    return name


if __name__ == "__main__":
    main()

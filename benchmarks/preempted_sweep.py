"""A sweep on the stand-in for Modal, a fifth of whose attempts are preempted: all jobs finish.

python -m benchmarks.preempted_sweep [JOBS]        (12; two cores: 6 minutes)

Each trains the tiny model to the end, with its checkpoints in an S3 server too, a tenth of whose
answers are faults. Fails if a job is missing, has gaps, or is not what it is without preemptions.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import runs
from tests.conftest import SMALL, command
from tests.fakes.control_plane import ControlPlane, Settings
from tests.support.faults import FaultProxy
from tests.support.stores import KEY, SECRET, bucket_of, moto_server

SHARE, AFTER = 0.2, (2.0, 14.0)  # of the attempts; seconds after their start
FAULTS = 0.1
STEPS = 16


def main() -> None:
    logging.getLogger("grpclib").setLevel(logging.CRITICAL)  # clients hang up in mid-stream
    jobs = int(sys.argv[1]) if sys.argv[1:] else 12
    settings = [
        *(*SMALL, "model=tiny", f"trainer.max_steps={STEPS}", "num_examples=8"),
        *(f"seed=range({jobs})", "checkpoint.keep_latest=1000", "checks.patience=99"),
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    here = runs.folder(sweep(settings, "here"))
    with (
        tempfile.TemporaryDirectory() as temporary,
        ControlPlane(Path(temporary) / "plane", Settings()) as plane,
        moto_server() as server,
        FaultProxy(server) as proxy,
    ):
        plane.preempt_share(SHARE, seed=6, after=AFTER)
        os.environ |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        bucket_of(proxy.url).create()
        proxy.rate, proxy.slow = FAULTS, 0.1
        mounts = [f"hydra.launcher.volumes.{v}={temporary}/{v}" for v in ("cache", "outputs")]
        parallel = [
            *("hydra.launcher.max_parallel=2", "checkpoint.store=s3://bucket/prefix"),
            "+hydra.launcher.image.env.OMP_NUM_THREADS='1'",  # as here: the same sums
        ]
        begun = time.monotonic()
        there = runs.folder(
            sweep([*settings, "gpu=a10g", *mounts, *parallel], "there", **plane.environment)
        )
        proxy.rate = 0.0
        calls = plane.state.calls.values()
        preempted = sum(a.ending == "preempted" for call in calls for a in call.attempts)
        keys = [found.key for found in bucket_of(proxy.url).objects.all()]
    manifests = sum(key.endswith("manifest.json") for key in keys)
    same = [
        runs.results(here.parent / str(n)) == runs.results(there.parent / str(n))
        for n in range(jobs)
    ]
    print(
        f"{sum(same)} of {jobs} jobs as undisturbed after {preempted} preemptions, "
        f"{time.monotonic() - begun:.0f} s; {manifests} of {jobs * STEPS // 2} checkpoints stored"
    )
    sys.exit(not (all(same) and preempted and manifests == jobs * STEPS // 2))


def sweep(settings: list[str], what: str, **variables: str) -> str:
    """The name of the run, which has ended well."""
    name = runs.name_of(what)
    words = command([*settings, f"name={name}"])
    ended = subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{ended.stdout[-4000:]}\n{ended.stderr[-2000:]}")
    return name


if __name__ == "__main__":
    main()

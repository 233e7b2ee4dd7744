"""Plan a sweep of 200 trivial jobs, then run it on the stand-in for Modal.

python -m benchmarks.throughput.launcher_sweep [JOBS]   (default 200; about a minute on two cores)

Fails if planning takes 15 s, if a job is missing, or if the client needs 300 MB.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fakes.control_plane import ControlPlane, Settings

MAX_PLANNING_SECONDS = 15
MAX_CLIENT_MEGABYTES = 300
APPLICATION = """
import hydra

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    return config.number / config.scale.by

if __name__ == "__main__":
    main()
"""
CONF = {
    "config.yaml": "defaults: [scale: one, _self_, override hydra/launcher: modal_jobs]\nnumber: 0",
    "scale/one.yaml": "by: 1",
    "scale/ten.yaml": "by: 10",
}


def run(folder: Path, *overrides: str, **variables: str) -> tuple[float, float]:
    """Run the application to its end; return its seconds and its peak memory in megabytes."""
    started = time.monotonic()
    with (folder / "out.txt").open("w") as out:
        command = [sys.executable, "application.py", "-m", *overrides]
        environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit((folder / "out.txt").read_text()[-4000:])
    return time.monotonic() - started, used.ru_maxrss / 1024


def main() -> None:
    logging.getLogger("grpclib").setLevel(
        logging.CRITICAL
    )  # it logs clients that hang up in mid-stream
    jobs = int(sys.argv[1]) if sys.argv[1:] else 200
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "application"
        for name, text in CONF.items():
            (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "conf" / name).write_text(text)
        (folder / "application.py").write_text(APPLICATION)
        sweep = [f"number=range({jobs // 2})", "scale=one,ten"]

        planned, _ = run(folder, *sweep, "hydra.launcher.plan_only=true")
        print(f"{jobs} jobs planned in {planned:.1f} s", flush=True)

        with ControlPlane(Path(temporary) / "plane", Settings()) as plane:
            mounts = [f"hydra.launcher.volumes.{v}={temporary}/{v}" for v in ("cache", "outputs")]
            begun = time.time()
            seconds, megabytes = run(
                folder, *sweep, *mounts, "hydra.launcher.max_parallel=8", **plane.environment
            )
            calls = plane.state.calls.values()
            handed_over = max(call.created_at for call in calls) - begun
            done = sum(call.attempts[-1].ending == "success" for call in calls)
    print(
        f"{done} of {jobs} done: handed over after {handed_over:.1f} s, finished and fetched, "
        f"8 at a time, after {seconds:.1f} s; peak memory of the client {megabytes:.0f} MB"
    )
    sys.exit(
        not (planned < MAX_PLANNING_SECONDS and done == jobs and megabytes < MAX_CLIENT_MEGABYTES)
    )


if __name__ == "__main__":
    main()

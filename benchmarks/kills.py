"""SIGKILL at random moments: does the run end as if undisturbed, with every checkpoint there?

python -m benchmarks.kills [KILLS] [--faults SHARE] [OVERRIDES...]        (25 kills; 8 minutes)

With --faults the checkpoints go to an S3 server (moto) behind a proxy that fails that share of the
requests, and once, in the middle, the local ones are deleted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import load_file
from torch import equal

from benchmarks import runs
from rl_experiments.checkpoints.local import is_whole, step_of
from tests.conftest import SMALL
from tests.support.faults import FaultProxy
from tests.support.stores import KEY, SECRET, bucket_of, moto_server

EVERY = 2  # steps between checkpoints
PATIENCE = 120.0  # seconds for one more checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int, nargs="?", default=25)
    parser.add_argument("--faults", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    told = parser.parse_intermixed_args()
    steps = EVERY * (told.kills + 3)
    settings = [
        *SMALL,
        *(f"trainer.max_steps={steps}", f"checkpoint.every_steps={EVERY}", "num_examples=8"),
        *("checkpoint.keep_latest=1000", *told.overrides),
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    whole = runs.train("undisturbed", settings)
    with ExitStack() as stack:
        proxy = None
        if told.faults is not None:
            proxy = stack.enter_context(FaultProxy(stack.enter_context(moto_server())))
            os.environ |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
            bucket_of(proxy.url).create()
            proxy.rate, proxy.slow = told.faults, 0.1
            settings.append("checkpoint.store=s3://bucket/prefix")
        run = disturbed(settings, kills=told.kills, seed=told.seed, loses_disk=proxy is not None)
        wanted = list(range(EVERY, steps + 1, EVERY))
        there = [step_of(path) for path in (run / "checkpoints").iterdir() if is_whole(path)]
        missing = set(wanted) - set(there)
        if proxy is not None:
            proxy.rate = 0.0
            keys = [found.key.split("/") for found in bucket_of(proxy.url).objects.all()]
            stored = {int(key[-2]) for key in keys if key[-1] == "manifest.json"}
            # After the disk was lost only the newest came back to it: the store has all.
            missing = set(wanted) - stored
            print(f"{len(proxy.faults)} of {len(proxy.requests)} requests failed")
    same = same_results(whole, run)
    print(f"weights and metrics as undisturbed: {same}; checkpoints missing: {sorted(missing)}")
    sys.exit(bool(missing) or not same)


def disturbed(settings: list[str], *, kills: int, seed: int, loses_disk: bool) -> Path:
    """The run's folder after so many kills and an end in peace."""
    rng, name, reported = random.Random(seed), runs.name_of("killed"), set[int]()
    run, started = runs.folder(name), time.monotonic()
    for kill in range(kills):
        process = runs.start(name, settings if kill == 0 else [*settings, "resume=true"])
        waited = time.monotonic() + PATIENCE
        # Some die as they start, most somewhere around their next checkpoint.
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 8))
        else:
            while sealed(run) <= reported:
                if process.poll() is not None or time.monotonic() > waited:
                    sys.exit(f"{runs.output(name)[-4000:]}\nno further checkpoint")
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.6))
        runs.kill(process)
        lost = reported - sealed(run)
        if lost and not loses_disk:
            sys.exit(f"checkpoints were reported and are gone: {sorted(lost)}")
        reported |= sealed(run)
        if loses_disk and kill == kills // 2:
            words = [sys.executable, "-m", "rl_experiments", "push", name]
            while os.spawnv(os.P_WAIT, sys.executable, words):
                pass  # faults beyond its patience
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
    runs.finish(runs.start(name, [*settings, "resume=true"]), name)
    said = runs.output(name).splitlines()
    resumed = [int(line.split()[-1]) for line in said if "Going on from step" in line]
    print(f"{kills} kills in {time.monotonic() - started:.0f} s; resumed from {resumed}")
    return run


def sealed(run: Path) -> set[int]:
    found = (run / "checkpoints").glob("checkpoint-*/manifest.json")
    return {step_of(path.parent) for path in found}


def same_results(first: Path, second: Path) -> bool:
    left, right = (load_file(last_checkpoint(run) / "model.safetensors") for run in (first, second))
    equal_weights = all(equal(left[name], right[name]) for name in left)
    return equal_weights and runs.results(first) == runs.results(second)


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").iterdir(), key=step_of)


if __name__ == "__main__":
    main()

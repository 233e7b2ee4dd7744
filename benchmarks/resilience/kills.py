"""Does a run that is killed at random moments end like an undisturbed one, with all checkpoints?

python -m benchmarks.resilience.kills [KILLS] [--faults SHARE] [OVERRIDES...]

The default is 25 kills (SIGKILL), which take 8 minutes. With --faults the checkpoints go to an S3
server (moto) behind a proxy that fails this share of the requests, and halfway the local
checkpoints are deleted. Fails unless weights, metrics and evaluation are equal bit for bit.
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

from benchmarks import _results as results
from rl_experiments.checkpoints.local import step_of
from rl_experiments.checkpoints.manifest import verify
from tests.support.faults import FaultProxy
from tests.support.program import SMALL
from tests.support.stores import KEY, SECRET, bucket_of, moto_server

CHECKPOINT_STEPS = 2  # steps between checkpoints
NEXT_CHECKPOINT_TIMEOUT_SECONDS = 120.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int, nargs="?", default=25)
    parser.add_argument("--faults", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    steps = CHECKPOINT_STEPS * (arguments.kills + 3)
    settings = [
        *SMALL,
        *(
            f"trainer.max_steps={steps}",
            f"checkpoint.every_steps={CHECKPOINT_STEPS}",
            "num_examples=8",
        ),
        *("checkpoint.keep_latest=1000", *arguments.overrides),
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    undisturbed = results.train("undisturbed", settings)
    with ExitStack() as stack:
        proxy = None
        if arguments.faults is not None:
            proxy = stack.enter_context(FaultProxy(stack.enter_context(moto_server())))
            os.environ |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
            bucket_of(proxy.url).create()
            proxy.rate, proxy.slow_seconds = arguments.faults, 0.1
            settings.append("checkpoint.store=s3://bucket/prefix")
        run = disturbed(
            settings, kills=arguments.kills, seed=arguments.seed, loses_disk=proxy is not None
        )
        expected = list(range(CHECKPOINT_STEPS, steps + 1, CHECKPOINT_STEPS))
        present = [step_of(path) for path in (run / "checkpoints").iterdir() if verify(path)]
        missing = set(expected) - set(present)
        if proxy is not None:
            proxy.rate = 0.0
            keys = [stored.key.split("/") for stored in bucket_of(proxy.url).objects.all()]
            stored_steps = {int(key[-2]) for key in keys if key[-1] == "manifest.json"}
            # After the loss only the newest came back to the local folder; the store has all.
            missing = set(expected) - stored_steps
            print(f"{len(proxy.faults)} of {len(proxy.requests)} requests failed")
    same = same_results(undisturbed, run)
    print(f"weights and metrics as undisturbed: {same}; checkpoints missing: {sorted(missing)}")
    sys.exit(bool(missing) or not same)


def disturbed(settings: list[str], *, kills: int, seed: int, loses_disk: bool) -> Path:
    """Kill a run this many times, resume it each time, let it end, and return its folder."""
    rng, name, reported = random.Random(seed), results.unique_name("killed"), set[int]()
    run, started = results.run_folder(name), time.monotonic()
    for kill in range(kills):
        process = results.start(name, settings if kill == 0 else [*settings, "resume=true"])
        deadline = time.monotonic() + NEXT_CHECKPOINT_TIMEOUT_SECONDS
        # Some attempts die as they start, most of them around their next checkpoint.
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 8))
        else:
            while complete(run) <= reported:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{results.read_output(name)[-4000:]}\nno further checkpoint")
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.6))
        results.kill(process)
        lost = reported - complete(run)
        if lost and not loses_disk:
            sys.exit(f"checkpoints were reported and are gone: {sorted(lost)}")
        reported |= complete(run)
        if loses_disk and kill == kills // 2:
            words = [sys.executable, "-m", "rl_experiments", "push", name]
            while os.spawnv(os.P_WAIT, sys.executable, words):
                pass  # more faults than its retries can stand
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
    results.finish(results.start(name, [*settings, "resume=true"]), name)
    lines = results.read_output(name).splitlines()
    resumed = [int(line.split()[-1]) for line in lines if "Going on from step" in line]
    print(f"{kills} kills in {time.monotonic() - started:.0f} s; resumed from {resumed}")
    return run


def complete(run: Path) -> set[int]:
    """Return the steps whose checkpoints are complete, which their manifests say."""
    manifests = (run / "checkpoints").glob("checkpoint-*/manifest.json")
    return {step_of(path.parent) for path in manifests}


def same_results(first: Path, second: Path) -> bool:
    """Return whether two runs have equal weights, metrics and evaluation."""
    left, right = (load_file(last_checkpoint(run) / "model.safetensors") for run in (first, second))
    equal_weights = all(equal(left[name], right[name]) for name in left)
    first_results, second_results = map(results.reproducible_results, (first, second))
    return equal_weights and first_results == second_results


def last_checkpoint(run: Path) -> Path:
    """Return the folder of the newest checkpoint."""
    return max((run / "checkpoints").iterdir(), key=step_of)


if __name__ == "__main__":
    main()

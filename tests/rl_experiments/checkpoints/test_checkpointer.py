"""Whole runs over a store: killed, faulty, down, on another machine, with a second writer."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from rl_experiments.checkpoints.checkpointer import exclusive_lock
from rl_experiments.checkpoints.local import step_of
from rl_experiments.checkpoints.manifest import verify
from tests.rl_experiments.training.test_training import started
from tests.support.faults import FaultProxy
from tests.support.program import SMALL, Program, WarmStarter
from tests.support.stores import bucket_of, moto, proxy, rclone, surroundings

__all__ = ["moto", "proxy", "rclone", "surroundings"]  # fixtures

RUN = [*SMALL, "num_examples=4", "trainer.max_steps=8"]
STORE = "checkpoint.store=s3://bucket/prefix"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, run_in: Program) -> Path:
    """The run folder of an experiment that nothing disturbs; its store is a folder."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    # Evaluations during training do not change results, so other runs can be compared with it.
    evaluated = ["evaluation.every_steps=4", "evaluation.validation_examples=6"]
    kept = ["checkpoint.keep_every=4", "checkpoint.keep_best=eval/reward"]
    settings = [*RUN, "name=one", "checkpoint.store=store", *evaluated, *kept]
    run_in(cwd, *settings).check_returncode()
    return cwd / "runs/one/0"


def aws() -> dict[str, str]:
    """Return the variables that the fixtures have set, for programs."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def stored(store: Path, name: str) -> dict[int, Path]:
    """Return the checkpoints of a run in a store that is a folder, by their steps."""
    manifests = (store / "rl-experiments/models" / name).glob("*/manifest.json")
    return {int(path.parent.name): path.parent for path in manifests}


def assert_same_weights(first: Path, second: Path) -> None:
    left, right = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)


def test_the_store_holds_what_the_policy_keeps(undisturbed: Path) -> None:
    store = stored(undisturbed.parents[2] / "store", "one-0")
    assert sorted(store) == [4, 6, 8]
    local = {step_of(path): path for path in (undisturbed / "checkpoints").iterdir()}
    assert sorted(local) == [4, 6, 8]
    assert all(verify(path) for path in [*store.values(), *local.values()])
    kept = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert kept | {"model.safetensors"} < {path.name for path in store[8].iterdir()}
    manifest = json.loads((store[8] / "manifest.json").read_text())
    assert manifest["metrics"]["reward"] and manifest["metrics"]["step"] == 8.0
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/reward" in line] == [4, 8]
    played = (undisturbed / "validation/validation.jsonl").read_text().splitlines()
    assert len(played) == 6 and json.loads(played[0])["seed"] > 1 << 30
    assert manifest["metrics"]["eval/reward"] == lines[-1]["eval/reward"]
    assert (store[8] / "run/metrics.jsonl").read_text() == (
        undisturbed / "metrics.jsonl"
    ).read_text()


def test_killed_over_a_faulty_store_nothing_is_lost(
    undisturbed: Path,
    proxy: FaultProxy,
    program: Program,
    program_environment: dict[str, str],
    warm: WarmStarter,
    tmp_path: Path,
) -> None:
    proxy.rate, proxy.slow_seconds = 0.3, 0.02
    settings = [*RUN, "name=killed", STORE, "checkpoint.close_timeout=60"]
    run, rng, furthest = tmp_path / "runs/killed/0", random.Random(7), 0
    environment = {**program_environment, **aws()}
    for attempt in range(2):
        process = started(settings, cwd=tmp_path, env=environment, warm=warm)
        deadline = time.monotonic() + 600
        while not any(step > furthest for step in finished_steps(run)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        furthest = max(finished_steps(run))
        if attempt == 0:
            settings.append("resume=true")
        if attempt == 1:  # the disk is lost, after its checkpoints have been uploaded
            proxy.rate = 0.0
            pushed = program("push", "killed", **aws())
            assert pushed.returncode == 0 and f"{furthest} are in" in pushed.stdout
            proxy.rate = 0.3
            shutil.rmtree(run / "checkpoints")
    done = program(*settings, **aws())
    assert (done.returncode, done.stderr) == (0, "")
    began = next(line for line in done.stdout.splitlines() if line.startswith("Going on from"))
    assert int(began.split()[-1]) >= furthest >= 4
    assert steps(run) == [2, 4, 6, 8]
    assert_same_weights(run / "checkpoints/checkpoint-8", undisturbed / "checkpoints/checkpoint-8")
    proxy.rate = 0.0
    keys = [each.key for each in bucket_of(proxy.url).objects.filter(Prefix="prefix")]
    manifests = [key for key in keys if key.endswith("/manifest.json")]
    place = "prefix/rl-experiments/models/killed-0"
    assert manifests == [f"{place}/000006/manifest.json", f"{place}/000008/manifest.json"]
    assert not any("lease" in key for key in keys)
    assert len(proxy.faults) > 10
    # The checkpoint in the store can be played, by its address.
    played = program(
        "evaluate", "num_examples=4", "env.max_moves=8", f"checkpoint=s3://bucket/{place}", **aws()
    )
    assert played.returncode == 0, played.stderr
    last = (run / "evaluation.json").read_text()
    after = next(p for p in json.loads(last)["policies"] if p["policy"] == "after")
    assert f"{after['reward']['value']:.3f}" in played.stdout


def finished_steps(run: Path) -> list[int]:
    manifests = (run / "checkpoints").glob("checkpoint-*/manifest.json")
    return [step_of(path.parent) for path in manifests]


def test_another_machine_goes_on_if_it_may_trust_the_store(
    undisturbed: Path, program: Program, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.parents[2] / "store", tmp_path / "store")
    checkpoints = stored(tmp_path / "store", "one-0")
    for step in (6, 8):
        shutil.rmtree(checkpoints[step])
    settings = [*RUN, "name=one", "checkpoint.store=store"]
    refused = program(*settings)
    assert refused.returncode == 1 and "holds step 4 of a run of this name" in refused.stderr
    shutil.rmtree(tmp_path / "runs")
    refused = program(*settings, "resume=true")
    assert refused.returncode == 1 and "checkpoint.trust_store=true" in refused.stderr
    done = program(*settings, "resume=true", "checkpoint.trust_store=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Going on from step 4" in done.stdout
    run = tmp_path / "runs/one/0"
    assert steps(run) == [2, 4, 6, 8]
    assert_same_weights(run / "checkpoints/checkpoint-8", undisturbed / "checkpoints/checkpoint-8")


def test_a_store_that_goes_away_stops_no_run(
    proxy: FaultProxy, program: Program, tmp_path: Path
) -> None:
    def fail(method: str, path: str) -> None:
        proxy.down = proxy.down or "/000002/" in path

    proxy.before = fail
    settings = [*RUN, "name=down", STORE, "checkpoint.close_timeout=1", "checkpoint.keep_latest=9"]
    done = program(*settings, **aws())
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert "steps 2, 4, 6, 8 could not be uploaded and are kept in" in output
    assert "Push with: python -m rl_experiments push down" in output
    proxy.before, proxy.down = lambda method, path: None, False
    pushed = program("push", "down", **aws())
    assert pushed.returncode == 0, pushed.stderr
    assert "runs/down/0: steps 2, 4, 6, 8 are in s3://bucket/prefix" in pushed.stdout
    keys = [each.key for each in bucket_of(proxy.url).objects.all()]
    assert sum(key.endswith("/manifest.json") for key in keys) == 4


def test_a_store_that_cannot_work_and_a_second_writer_are_refused_before_any_work(
    proxy: FaultProxy, program: Program, tmp_path: Path
) -> None:
    refused = program(*RUN, "name=x", "checkpoint.store=s3://absent/prefix", **aws())
    line = "checkpoint.store=s3://absent/prefix: there is no such bucket ("
    assert refused.returncode == 1 and refused.stderr.startswith(line)
    assert "loading" not in refused.stdout
    (tmp_path / "runs/x/0").mkdir(parents=True, exist_ok=True)
    with exclusive_lock(tmp_path / "runs/x/0"):
        second = program(*RUN, "name=x", "resume=true")
    assert second.returncode == 1
    assert "another process writes this run" in second.stderr and "loading" not in second.stdout


OWN = """
def train(config, run):
    checkpoint = run.rewind()
    done = int((checkpoint / "state.json").read_text()) if checkpoint else 0
    for step in range(done + 1, config.trainer.max_steps + 1):
        checkpoint = run.checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(str(step))
        run.log_metrics(step, {"score": -float(step)})
        run.seal(step)
        if step == 3 and not config.resume:
            raise SystemExit("killed")
    return float(done)
"""


def test_a_training_function_of_the_users_has_the_store(program: Program, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = ["trainer.target=own:train", "name=own", "trainer.max_steps=8", "checkpoint.store=store"]
    own += ["checkpoint.keep_best=score", "checkpoint.keep_latest=1"]
    path = {"PYTHONPATH": str(tmp_path)}
    assert program(*own, **path).returncode == 1
    assert sorted(stored(tmp_path / "store", "own-0")) == [1, 3]
    done = program(*own, "resume=true", **path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(stored(tmp_path / "store", "own-0")) == [1, 8]
    assert steps(tmp_path / "runs/own/0") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert " 3 " in done.stdout  # its metric: where it went on from


INTERRUPTED = """
import hashlib, os, signal

def train(config, run):
    checkpoint = run.rewind()
    if config.resume:
        return float((checkpoint / "state.json").read_text())
    for step in (1, 2):
        checkpoint = run.checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(str(step))
        run.seal(step)
    (run.checkpoints / "checkpoint-3").mkdir()  # it is never finished
    hashlib.file_digest = lambda *arguments: os._exit(99)  # from now on, nothing may be hashed
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
"""


def test_ctrl_c_names_the_newest_checkpoint_without_reading_it(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(INTERRUPTED)
    own, path = ["trainer.target=own:train", "name=own"], {"PYTHONPATH": str(tmp_path)}
    stopped = program(*own, **path)
    assert stopped.returncode == 130, stopped.stderr
    run = tmp_path / "runs/own/0"
    assert f"Stopped; step 2 is kept in {run}. Go on with: " in stopped.stderr
    # When it is loaded, it is read: a damaged one is passed over.
    (run / "checkpoints/checkpoint-2/state.json").write_text("7")
    resumed = program(*own, "resume=true", **path)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "checkpoint-2 is unfinished or damaged; it is passed over" in resumed.stdout
    assert " 1 " in resumed.stdout  # the function's metric

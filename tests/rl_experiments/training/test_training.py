"""Training from the command line: its files, the same seed again, runs that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import equal

from rl_experiments.checkpoints.local import latest_valid
from rl_experiments.checkpoints.manifest import verify
from tests.support.forked import ForkedProcess
from tests.support.program import SMALL, Program, WarmStarter

pytestmark = pytest.mark.slow

_HANG_SECONDS = 600


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run without those that a clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def outcome(run: Path) -> dict[str, Any]:
    """Return all that must be equal in two equal runs: weights, metrics, episodes, evaluation."""
    newest = latest_valid(run / "checkpoints")
    assert newest is not None
    return {
        "checkpoint": newest.name,
        "weights": load_file(next(newest.glob("*model.safetensors"))),
        "metrics": metrics(run),
        "episodes": (run / "episodes.jsonl").read_text(),
        "evaluation": (run / "evaluation.json").read_text(),
    }


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Assert that two results of `outcome` are equal, the weights bit for bit."""
    weights = first.pop("weights"), second.pop("weights")
    assert first == second
    assert weights[0].keys() == weights[1].keys()
    assert all(equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, run_in: Program) -> tuple[Path, str]:
    """Return the run folder and the output of a small experiment that nothing interrupted."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = run_in(cwd, *SMALL, "name=one", "trainer.max_steps=8", from_nothing=True)
    assert (done.returncode, done.stderr) == (0, "")
    return cwd / "runs/one/0", done.stdout


def test_a_run_shows_its_progress_and_its_table(undisturbed: tuple[Path, str]) -> None:
    run, output = undisturbed
    assert "Model: tiny (gpu=local; model=... chooses another)" in output
    assert "train step 8/8  reward" in output and "tokens/s" in output and "s left" in output
    for policy in ("random", "random_legal", "corner_order", "merge_greedy", "before", "after"):
        assert any(line.split()[:2] == [policy, "12"] for line in output.splitlines())
    compared = ["after", "-", "before", "paired"]
    assert any(line.split()[:4] == compared for line in output.splitlines())
    assert f"Run folder: {run}" in output


def test_a_run_folder_has_the_settings_and_the_results(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 8 and config["env"]["win_value"] == 32
    record = json.loads((run / "run.json").read_text())
    assert record["packages"]["trl"] and record["overrides"][0] == "num_examples=12"
    assert set(record["git"]) == {"commit", "dirty"} and record["seeds"]["run"] == 0
    assert [line["step"] for line in metrics(run)] == [2, 4, 6, 8]
    assert all(0 <= line["win_rate"] <= 1 and "grad_norm" in line for line in metrics(run))
    episodes = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    assert episodes[0]["turns"][0]["observation"].startswith(("_", "2", "4"))
    assert all(episode["seed"] % 2 == 0 for episode in episodes)
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["checkpoint-6", "checkpoint-8"]
    summary = json.loads((run / "evaluation.json").read_text())
    assert [policy["policy"] for policy in summary["policies"]][-2:] == ["before", "after"]
    for policy in summary["policies"]:
        lines = (run / f"evaluation/{policy['policy']}.jsonl").read_text().splitlines()
        played = [json.loads(line) for line in lines]
        assert sorted(episode["seed"] for episode in played) == list(range(1, 24, 2))
        won = sum(episode["won"] for episode in played) / 12
        assert policy["win_rate"]["value"] == pytest.approx(won)


def test_the_same_seed_repeats_and_another_does_not(
    undisturbed: tuple[Path, str], program: Program, tmp_path: Path
) -> None:
    small = [*SMALL, "trainer.max_steps=8"]
    assert program(*small, "name=again").returncode == 0
    assert_same(outcome(undisturbed[0]), outcome(tmp_path / "runs/again/0"))
    assert program(*small, "name=other", "seed=1").returncode == 0
    assert metrics(tmp_path / "runs/other/0") != metrics(undisturbed[0])


def test_a_killed_run_resumes_to_the_same_weights(
    undisturbed: tuple[Path, str],
    program: Program,
    program_environment: dict[str, str],
    warm: WarmStarter,
    tmp_path: Path,
) -> None:
    arguments = [*SMALL, "name=killed", "trainer.max_steps=8"]
    run = tmp_path / "runs/killed/0"
    moments = [
        (run / "evaluation/before.jsonl", 5),  # while the policy is evaluated before training
        (run / "metrics.jsonl", 1),  # in training, when the first checkpoint is due
        (run / "metrics.jsonl", 3),
    ]
    for file, lines in moments:
        kill_when(file, lines, arguments, cwd=tmp_path, env=program_environment, warm=warm)
        arguments = [*arguments, "resume=true"] if "resume=true" not in arguments else arguments
    # As if killed during a save: the resumed run must ignore this checkpoint.
    torn = run / "checkpoints/checkpoint-8"
    torn.mkdir(exist_ok=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    done = program(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(outcome(undisturbed[0]), outcome(run))


def test_a_run_that_is_asked_to_stop_saves_a_checkpoint_first(
    undisturbed: tuple[Path, str], program: Program, tmp_path: Path
) -> None:
    (tmp_path / "stop").touch()
    small = [*SMALL, "name=asked", "trainer.max_steps=8", "checkpoint.every_steps=8"]
    asked = program(*small, HYDRA_JOB_STOP=str(tmp_path / "stop"))
    assert asked.returncode == 1
    assert asked.stderr.startswith("Stopped; step 2 is kept") and "resume asked" in asked.stderr
    done = program("resume", "asked")
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "runs/asked/0"
    assert [line["step"] for line in metrics(run)] == [2, 4, 6, 8]
    assert_same(outcome(undisturbed[0]), outcome(run))


def test_micro_batches_give_the_gradient_of_the_mini_batch(
    undisturbed: tuple[Path, str], program: Program, tmp_path: Path
) -> None:
    """With a bounded history each turn is a sample, and these may not fit the GPU at once."""
    whole = metrics(undisturbed[0])
    done = program(*SMALL, "name=parts", "trainer.max_steps=8", "memory.micro_batch_tokens=250")
    assert done.returncode == 0, done.stderr
    for first, second in zip(whole, metrics(tmp_path / "runs/parts/0"), strict=True):
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3, abs=1e-5)
    means = ["trainer.loss_type=grpo", "trainer.scale_rewards=none"]
    for name, tokens in (("all", "null"), ("some", "150")):
        small = [*SMALL, *means, f"name={name}", f"memory.micro_batch_tokens={tokens}"]
        assert program(*small).returncode == 0
    first, second = (metrics(tmp_path / f"runs/{name}/0")[-1] for name in ("all", "some"))
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
    assert whole[-1]["grad_norm"] > 0 and first["grad_norm"] > 0  # else nothing was compared


def kill_when(
    file: Path,
    lines: int,
    arguments: list[str],
    *,
    cwd: Path,
    env: dict[str, str],
    warm: WarmStarter,
) -> None:
    """Run the program and end it with SIGKILL as soon as the file has `lines` lines."""
    process = started(arguments, cwd=cwd, env=env, warm=warm)
    deadline = time.monotonic() + _HANG_SECONDS
    while not (file.exists() and file.read_text().count("\n") >= lines):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def started(
    arguments: list[str], *, cwd: Path, env: dict[str, str], warm: WarmStarter
) -> ForkedProcess:
    """Start the program and return its process; its output is discarded."""
    return warm.start(arguments, cwd=cwd, variables=env, out=os.devnull, err=os.devnull)


def test_a_run_is_not_resumed_with_another_setting(
    undisturbed: tuple[Path, str], run_in: Program
) -> None:
    run, _ = undisturbed
    small = [*SMALL, "name=one", "trainer.max_steps=8"]
    done = run_in(run.parents[2], *small, "env.hints=false", "resume=true")
    assert done.returncode == 1 and done.stderr.startswith("env.hints is not what it was")


def test_a_checkpoint_with_a_changed_byte_is_not_valid(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    source = latest_valid(undisturbed[0] / "checkpoints")
    assert source is not None and verify(source)
    copy = tmp_path / "checkpoint-8"
    shutil.copytree(source, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert not verify(copy) and latest_valid(tmp_path) is None


def test_a_checkpoint_can_be_evaluated_and_played(
    undisturbed: tuple[Path, str], program: Program, tmp_path: Path
) -> None:
    run, _ = undisturbed
    done = program(*SMALL, "evaluate", f"checkpoint={run}", "name=e")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads((tmp_path / "runs/e/0/evaluation.json").read_text())
    trained = json.loads((run / "evaluation.json").read_text())
    evaluated = next(p for p in summary["policies"] if p["policy"] == "checkpoint-8")
    assert evaluated["win_rate"] == trained["policies"][-1]["win_rate"]
    assert evaluated["reward"] == trained["policies"][-1]["reward"]
    watched = program(*SMALL, "play", f"checkpoint={run}")
    assert watched.returncode == 0 and "<move>" in watched.stdout
    assert "\n> <move>" in watched.stdout and "after" in watched.stdout  # a move, and the end

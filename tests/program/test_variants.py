"""Other ways to train: adapters, histories, several passes; each a small run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl_experiments.checkpoints.local import latest_valid
from rl_experiments.storage.files import read_json_lines
from rl_experiments.training.grpo_config import merge_accumulation_passes
from tests.rl_experiments.training.test_training import assert_same, metrics, outcome
from tests.support.program import SMALL, Program


def test_passes_that_are_merged_into_one_make_the_same_update(
    program: Program, tmp_path: Path
) -> None:
    """On a GPU an optimizer step is one pass, split by memory alone."""
    passes = {"trainer.per_device_train_batch_size": 2, "trainer.gradient_accumulation_steps": 4}
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    settings["steps_per_generation"] = 4
    merge_accumulation_passes(settings)
    assert list(settings.values()) == [8, 1, 1]
    for name, given in (
        ("four", passes),
        ("one", {f"trainer.{k}": v for k, v in settings.items()}),
    ):
        words = [f"{key}={value}" for key, value in given.items()]
        words += [] if name == "one" else ["trainer.steps_per_generation=4"]
        few = ["trainer.max_steps=2", "checkpoint.every_steps=1", "num_examples=2"]
        done = program(*SMALL, *few, *words, f"name={name}")
        assert done.returncode == 0, done.stderr
    four, one = metrics(tmp_path / "runs/four/0"), metrics(tmp_path / "runs/one/0")
    for first, second in zip(four, one, strict=True):
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
        assert second["reward"] == pytest.approx(first["reward"])


def test_a_finished_adapter_run_goes_on_to_more_steps(program: Program, tmp_path: Path) -> None:
    lora = [*SMALL, "model.lora.enabled=true", "num_examples=4"]
    assert program(*lora, "name=straight").returncode == 0
    assert program(*lora, "name=extended", "trainer.max_steps=2").returncode == 0
    done = program(*lora, "name=extended", "resume=true")
    assert (done.returncode, done.stderr) == (0, "")
    straight, extended = (outcome(tmp_path / f"runs/{name}/0") for name in ("straight", "extended"))
    for record in straight["metrics"] + extended["metrics"]:
        del record["epoch"]  # of the steps that were asked for
    assert_same(straight, extended)


VARIANTS = {
    "lora": ["model.lora.enabled=true"],
    "full history": ["env.earlier_turns=null", "reward.credit=episode", "env.max_moves=3"],
    "bounded history, KL, reuse": ["env.earlier_turns=1", "trainer.beta=0.1", "env.max_moves=4"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_change_the_weights(
    variant: str, program: Program, tmp_path: Path
) -> None:
    extra = ["trainer.num_iterations=2", "checkpoint.every_steps=4", "num_examples=4"]
    # Enough that rewards vary; each variant has a model of its own to warm up.
    extra += ["model.scratch.warmup_steps=25", "model.scratch.warmup_learning_rate=1e-2"]
    done = program(*SMALL, *extra, *VARIANTS[variant], "name=v")
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "runs/v/0"
    (last,) = metrics(run)
    assert last["grad_norm"] > 0 and last["sampling/sampling_logp_difference/mean"] < 1e-3
    assert (latest_valid(run / "checkpoints") or run).name == "checkpoint-4"


def test_training_goes_on_from_the_adapter_of_another_run(program: Program, tmp_path: Path) -> None:
    lora = [*SMALL, "model.lora.enabled=true", "trainer.learning_rate=0.02", "trainer.beta=0.1"]
    lora += ["model.scratch.warmup_episodes=100", "model.scratch.warmup_steps=60"]
    lora += ["env.hints=false", "num_examples=8"]

    def played(run: str, policy: str) -> list[dict[str, Any]]:
        file = tmp_path / f"runs/{run}/0/evaluation/{policy}.jsonl"
        same = ("seed", "reward", "turns", "end")
        return [{key: record[key] for key in same} for record in read_json_lines(file)]

    assert program(*lora, "name=first").returncode == 0
    done = program(*lora, "name=second", "checkpoint=runs/first/0")
    assert (done.returncode, done.stderr) == (0, "")
    assert played("first", "before") != played("first", "after") == played("second", "before")
    assert played("second", "after") != played("second", "before")
    done = program(*lora, "evaluate", "name=third", "checkpoint=runs/second/0")
    assert done.returncode == 0, done.stderr
    last = latest_valid(tmp_path / "runs/second/0/checkpoints")
    assert last and played("third", last.name) == played("second", "after")
    other = program(*lora, "checkpoint=runs/first/0", "model.lora.r=4")
    assert other.returncode == 1 and "model.lora.r=4: " in other.stderr and "r=8" in other.stderr
    whole = program(*lora, "name=whole", "checkpoint=runs/first/0", "model.lora.enabled=false")
    assert whole.returncode == 0, whole.stderr
    assert played("whole", "before") == played("first", "after")


def test_a_step_of_several_generations_never_plays_a_task_twice(
    program: Program, tmp_path: Path
) -> None:
    words = ["trainer.gradient_accumulation_steps=4", "trainer.steps_per_generation=1"]
    words += ["checks.patience=99"]
    done = program(*SMALL, *words, "trainer.max_steps=2", "name=several")
    assert done.returncode == 0, done.stderr
    episodes = read_json_lines(tmp_path / "runs/several/0/episodes.jsonl")
    assert len({episode["seed"] for episode in episodes}) == 2 * 4

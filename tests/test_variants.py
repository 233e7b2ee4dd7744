"""Other ways to train: adapters, histories, several passes; each a small run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_experiments.checkpoint import latest
from rl_experiments.grpo import merge
from tests.conftest import SMALL, Program
from tests.test_training import assert_same, metrics, outcome


def test_passes_that_are_merged_into_one_make_the_same_update(
    program: Program, tmp_path: Path
) -> None:
    """On a GPU an optimizer step is one pass, split by memory alone."""
    passes = {"trainer.per_device_train_batch_size": 2, "trainer.gradient_accumulation_steps": 4}
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    settings["steps_per_generation"] = 4
    merge(settings)
    assert list(settings.values()) == [8, 1, 1]
    for name, given in (
        ("four", passes),
        ("one", {f"trainer.{k}": v for k, v in settings.items()}),
    ):
        words = [f"{key}={value}" for key, value in given.items()]
        words += [] if name == "one" else ["trainer.steps_per_generation=4"]
        done = program(*SMALL, "checkpoint.every_steps=1", *words, f"name={name}")
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
    "full history": ["env.earlier_turns=null", "reward.credit=episode", "env.max_moves=6"],
    "bounded history, KL, reuse": ["env.earlier_turns=1", "trainer.beta=0.1", "env.max_moves=4"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_change_the_weights(
    variant: str, program: Program, tmp_path: Path
) -> None:
    extra = ["trainer.num_iterations=2", "checkpoint.every_steps=4", "num_examples=4"]
    extra += ["model.scratch.warmup_steps=60"]
    done = program(*SMALL, *extra, *VARIANTS[variant], "name=v")
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "runs/v/0"
    (last,) = metrics(run)
    assert last["grad_norm"] > 0 and last["sampling/sampling_logp_difference/mean"] < 1e-3
    assert (latest(run / "checkpoints") or run).name == "checkpoint-4"

"""The gradient of a mini-batch does not depend on how it is split, nor on what fills it up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, TrainerCallback

from rl_experiments.config.schema import LossType
from rl_experiments.training.trainer import EpisodeTrainer
from tests.support.tiny_models import tiny_model
from tests.support.trainers import small_trainer

pytestmark = pytest.mark.slow

# The weights stay as they are, so that the optimizer steps can be compared.
_STANDING_STILL = [
    "trainer.learning_rate=1e-30",
    "trainer.per_device_train_batch_size=8",
    "trainer.steps_per_generation=1",
    "trainer.max_grad_norm=1e9",
    "checkpoint.every_steps=9",
    "env.max_moves=5",
    "env.earlier_turns=0",
    "checks.max_logp_difference=9",
    "memory.micro_batch_tokens=200",
]
_FILLERS = 24


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradient of each optimizer step, as one tensor, before it is clipped."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(gradients))


def trainer_of(folder: Path, *overrides: str) -> EpisodeTrainer:
    return small_trainer(folder, *_STANDING_STILL, *overrides)


def gradients(
    folder: Path, *overrides: str, ways: Sequence[Sequence[str]]
) -> tuple[list[torch.Tensor], EpisodeTrainer]:
    """Return the gradient of the same episodes computed in each of the ways, and the trainer.

    A way holds "parts" if the mini-batch is split, and "filled" if samples without a loss fill it.
    """
    trainer = trainer_of(folder, f"trainer.max_steps={len(ways)}", *overrides)
    play, collate, parts = trainer._play_groups, trainer._collate, trainer.micro_batch_tokens
    assert parts == 200
    played = cache(play)

    def prepare(samples: Any) -> Any:
        way = ways[trainer.state.global_step]
        trainer.micro_batch_tokens = parts if "parts" in way else None
        if "filled" not in way:
            return collate(samples)
        # As if another process had more samples, so that this one fills up.
        trainer.args.steps_per_generation = len(samples) + _FILLERS
        try:
            return collate(samples)
        finally:
            trainer.args.steps_per_generation = 1

    first: list[tuple[int, ...]] = []

    def play_once(seeds: Sequence[int]) -> Any:
        first.append(tuple(seeds))
        return played(first[0])

    trainer._play_groups = play_once  # type: ignore[method-assign]
    trainer._collate = prepare  # type: ignore[method-assign]
    callback = Gradients()
    trainer.add_callback(callback)
    trainer.train()
    return callback.gradients, trainer


def relative_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


@pytest.fixture(scope="module")
def expert_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with experts that has the tokens of the tiny model."""
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        tiny = trainer_of(tmp_path_factory.mktemp("tiny")).model.name_or_path
    folder = tmp_path_factory.mktemp("experts")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = tiny_model("qwen3-moe", vocab_size=len(tokenizer), router_aux_loss_coef=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_TERMS = {
    "entropy": ["+trainer.extra.entropy_coef=0.1"],
    "entropy of means": ["trainer.loss_type=grpo", "+trainer.extra.entropy_coef=0.1"],
    "high entropy": ["+trainer.extra.top_entropy_quantile=0.5"],
    "entropy of high entropy": [
        "+trainer.extra.top_entropy_quantile=0.5",
        "+trainer.extra.entropy_coef=0.1",
    ],
    "KL": ["trainer.beta=0.1", "trainer.loss_type=bnpo"],
    **{each.value: [f"trainer.loss_type={each.value}"] for each in LossType},
}


@pytest.mark.parametrize("term", _TERMS)
def test_parts_give_the_gradient_of_the_whole(tmp_path: Path, term: str) -> None:
    (whole, parts), trainer = gradients(tmp_path, *_TERMS[term], ways=[["whole"], ["parts"]])
    assert whole.norm() > 0 and relative_difference(parts, whole) < 1e-4
    of_whole, of_parts = (entry["loss"] for entry in trainer.state.log_history[:2])
    assert of_parts == pytest.approx(of_whole, rel=1e-3, abs=1e-5)


def test_parts_adapt_the_entropy_bonus_once(tmp_path: Path) -> None:
    """Each optimizer step adapts it: the first steps of two trainers are compared."""
    adaptive = [
        "+trainer.extra.use_adaptive_entropy=true",
        "+trainer.extra.entropy_coef=0.05",
        "+trainer.extra.entropy_target=5.0",
    ]
    ((whole,), _), ((parts,), trainer) = (
        gradients(tmp_path / way, *adaptive, ways=[[way]]) for way in ("whole", "parts")
    )
    assert whole.norm() > 0 and relative_difference(parts, whole) < 1e-4
    entry = trainer.state.log_history[0]
    assert entry["entropy_coef"] == pytest.approx(0.05 + 0.005)  # adapted once, by TRL's delta


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo"])
@pytest.mark.parametrize("bonus", ["0", "0.1"])
def test_parts_balance_experts_as_the_whole_does(
    expert_model: Path, tmp_path: Path, loss_type: str, bonus: str
) -> None:
    overrides = [
        f"model.path={expert_model}",
        "model.scratch=null",
        f"trainer.loss_type={loss_type}",
        f"+trainer.extra.entropy_coef={bonus}",
    ]
    (whole, parts), trainer = gradients(tmp_path, *overrides, ways=[["whole"], ["parts"]])
    assert relative_difference(parts, whole) < 1e-4
    for name in ("loss", "aux_loss"):
        of_whole, of_parts = (entry[name] for entry in trainer.state.log_history[:2])
        assert of_parts == pytest.approx(of_whole, rel=1e-3)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "luspo", "sapo", "dapo", "bnpo"])
def test_samples_that_fill_a_batch_up_change_no_gradient(tmp_path: Path, loss_type: str) -> None:
    overrides = [f"trainer.loss_type={loss_type}", "+trainer.extra.entropy_coef=0.01"]
    ways = [["whole"], ["filled"], ["filled", "parts"]]
    (plain, *filled), _ = gradients(tmp_path, *overrides, ways=ways)
    assert all(relative_difference(each, plain) < 1e-4 for each in filled)

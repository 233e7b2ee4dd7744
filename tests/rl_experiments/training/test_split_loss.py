"""The gradient of a mini-batch does not depend on how it is split, nor on what fills it up."""

from __future__ import annotations

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

# Four optimizer steps would differ by what the first one changed: one is compared.
_ONE_STEP = [
    "trainer.max_steps=1",
    "trainer.per_device_train_batch_size=8",
    "trainer.steps_per_generation=1",
    "checkpoint.every_steps=1",
    "env.max_moves=5",
    "env.earlier_turns=0",
    "checks.max_logp_difference=9",
]
_PARTS = "memory.micro_batch_tokens=200"


class KeepGradient(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradient of the last optimizer step, as one tensor."""

    def on_pre_optimizer_step(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.gradient = torch.cat(gradients)


def gradient(trainer: EpisodeTrainer) -> torch.Tensor:
    """Return the gradient of the trainer's one step, before it is clipped to a norm of 1."""
    keep = KeepGradient()
    trainer.add_callback(keep)
    trainer.train()
    return keep.gradient


def relative_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


def step(folder: Path, *overrides: str) -> EpisodeTrainer:
    return small_trainer(folder, *_ONE_STEP, "trainer.max_grad_norm=1e9", *overrides)


@pytest.fixture(scope="module")
def expert_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with experts that has the tokens of the tiny model."""
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        tiny = step(tmp_path_factory.mktemp("tiny")).model.name_or_path
    folder = tmp_path_factory.mktemp("experts")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = tiny_model("qwen3-moe", vocab_size=len(tokenizer), router_aux_loss_coef=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_TERMS = {
    "entropy": ["+trainer.extra.entropy_coef=0.1"],
    "entropy of means": ["trainer.loss_type=grpo", "+trainer.extra.entropy_coef=0.1"],
    "adaptive entropy": [
        "+trainer.extra.use_adaptive_entropy=true",
        "+trainer.extra.entropy_coef=0.05",
        "+trainer.extra.entropy_target=5.0",
    ],
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
    whole = gradient(step(tmp_path / "whole", *_TERMS[term]))
    trainer = step(tmp_path / "parts", *_TERMS[term], _PARTS)
    parts = gradient(trainer)
    assert whole.norm() > 0 and relative_difference(parts, whole) < 1e-4
    entry = trainer.state.log_history[0]
    if term == "adaptive entropy":
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
    first, second = (
        step(tmp_path / "whole", *overrides),
        step(tmp_path / "parts", *overrides, _PARTS),
    )
    whole, parts = gradient(first), gradient(second)
    assert relative_difference(parts, whole) < 1e-4
    for name in ("loss", "aux_loss"):
        of_parts, of_whole = (t.state.log_history[0][name] for t in (second, first))
        assert of_parts == pytest.approx(of_whole, rel=1e-3)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "luspo", "sapo", "dapo", "bnpo"])
def test_samples_that_fill_a_batch_up_change_no_gradient(
    tmp_path: Path, loss_type: str, parts: bool
) -> None:
    overrides = [f"trainer.loss_type={loss_type}", "+trainer.extra.entropy_coef=0.01"]
    plain = gradient(step(tmp_path / "plain", *overrides))
    trainer = step(tmp_path / "filled", *overrides, *([_PARTS] if parts else ()))
    collate, fillers = trainer._collate, 24

    def with_fillers(samples: Any) -> Any:
        """Collate as if another process had more samples, so that this one fills up."""
        steps = trainer.args.steps_per_generation
        trainer.args.steps_per_generation = len(samples) + fillers
        try:
            return collate(samples)
        finally:
            trainer.args.steps_per_generation = steps

    trainer._collate = with_fillers  # type: ignore[method-assign]
    assert relative_difference(gradient(trainer), plain) < 1e-4

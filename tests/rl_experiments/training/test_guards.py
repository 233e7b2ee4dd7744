"""Training stops, with the reason, when it cannot be right."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from environments import Step
from environments.game2048 import Game2048
from rl_experiments.checkpoints.local import latest_valid
from rl_experiments.errors import UserError
from rl_experiments.inference.sampler import Sampler
from rl_experiments.inference.transformers_sampler import TransformersSampler
from tests.support.trainers import small_trainer


@pytest.mark.slow
def test_training_stops_if_the_sampler_keeps_its_first_weights(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, "trainer.learning_rate=0.02")
    first_weights = AutoModelForCausalLM.from_pretrained(trainer.model.name_or_path)
    trainer.rollout.sampler.model = first_weights  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"sampler and the trainer disagree.*checks\.max_logp"):
        trainer.train()


@pytest.mark.slow
def test_training_stops_if_the_sampler_has_another_temperature(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    trainer.rollout.sampler.temperature = 1.5  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="sampler and the trainer disagree"):
        trainer.train()


class CopyEngine:
    """An engine with a copy of the weights, as vLLM has one.

    It can be made faulty: only the first `syncs` loads change its weights, and only the first
    `versions` loads change its version.
    """

    sync_seconds = 0.0
    dtype = torch.float32

    def __init__(self, model: Any, *, syncs: int = 1000, versions: int = 1000) -> None:
        self.model = copy.deepcopy(model)
        self.syncs = syncs
        self.versions = versions
        self.loads = 0
        self.policy_version: int | None = None

    def load(self, model: Any, *, policy_version: int | None) -> None:
        self.loads += 1
        if self.loads <= self.syncs:
            self.model.load_state_dict(model.state_dict())
        if self.loads <= self.versions:
            self.policy_version = policy_version

    def logprobs(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        logprobs = []
        for prompt, reply in sequences:
            with torch.no_grad():
                logits = self.model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(reply).unsqueeze(1))
            logprobs.append(chosen.squeeze(1).tolist())
        return logprobs

    def sampler(self, model: Any, **settings: Any) -> Sampler:
        return CopySampler(self, model, pad_token_id=0, **settings)

    def close(self) -> None:
        pass


class CopySampler(TransformersSampler):
    """Plays with the weights of a `CopyEngine`, which it loads before each rollout."""

    def __init__(self, engine: CopyEngine, model: Any, **settings: Any) -> None:
        super().__init__(engine.model, **settings)
        self.engine = engine
        self.policy = model

    def begin(self, policy_version: int | None) -> None:
        assert self.engine is not None
        self.engine.load(self.policy, policy_version=policy_version)
        super().begin(self.engine.policy_version)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.3])
def test_the_engine_is_compared_with_the_policy_at_each_sync(
    tmp_path: Path, temperature: float
) -> None:
    trainer = small_trainer(
        tmp_path,
        "trainer.max_steps=6",
        "trainer.learning_rate=0.02",
        f"trainer.temperature={temperature}",
        engine=CopyEngine,
    )
    trainer.train()
    logged = [r["sampling/sync_logp_difference/mean"] for r in trainer.state.log_history[:-1]]
    assert len(logged) == 3 and max(logged) < 1e-5


@pytest.mark.slow
def test_training_stops_if_a_sync_leaves_the_engine_unchanged(tmp_path: Path) -> None:
    trainer = small_trainer(
        tmp_path, "trainer.learning_rate=0.02", engine=lambda model: CopyEngine(model, syncs=1)
    )
    with pytest.raises(UserError, match=r"not the policy after a weight sync.*max_sync_diff"):
        trainer.train()
    assert trainer.state.global_step == 2  # the second sync is the first that does nothing


@pytest.mark.slow
def test_training_stops_if_the_engine_plays_an_old_version(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, engine=lambda model: CopyEngine(model, versions=1))
    with pytest.raises(
        UserError, match=r"played with the weights of step 0, but the trainer is at step 2"
    ):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_training_stops_at_a_gradient_that_is_not_finite(tmp_path: Path, poison: float) -> None:
    trainer = small_trainer(tmp_path, "checkpoint.every_steps=2")
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)

    def spoil(gradient: torch.Tensor) -> torch.Tensor | None:
        return gradient * poison if trainer.state.global_step == 4 else None

    weight.register_hook(spoil)
    with pytest.raises(UserError, match=r"gradient of optimizer step 5 is not finite"):
        trainer.train()
    newest = latest_valid(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-4"
    weights = load_file(newest / "model.safetensors").values()
    assert all(each.isfinite().all() for each in [*weights, *trainer.model.parameters()])


@pytest.mark.slow
def test_training_stops_at_a_step_after_which_weights_are_not_finite(tmp_path: Path) -> None:
    trainer = small_trainer(
        tmp_path, "trainer.learning_rate=1e39", "trainer.lr_scheduler_type=constant"
    )
    with pytest.raises(UserError, match=r"weights of optimizer step 1 are not finite"):
        trainer.train()
    assert latest_valid(tmp_path / "checkpoints") is None


@pytest.mark.slow
def test_a_checkpoint_with_weights_that_are_not_finite_is_not_resumed(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, "trainer.max_steps=2")
    trainer.train()
    checkpoint = tmp_path / "checkpoints/checkpoint-2"
    weights = load_file(checkpoint / "model.safetensors")
    next(iter(weights.values())).view(-1)[3] = math.nan
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights of .*checkpoint-2 are not finite"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


@dataclass
class EqualRewards(Game2048):
    """A game in which every episode has the reward 1."""

    def step(self, reply: str) -> Step:
        step = super().step(reply)
        return Step(observation=step.observation, end=step.end, episode_reward=1.0)


@pytest.mark.slow
def test_training_stops_if_no_rewards_vary(tmp_path: Path) -> None:
    trainer = small_trainer(
        tmp_path, "checks.patience=2", environment=EqualRewards(max_moves=3, earlier_turns=0)
    )
    with pytest.raises(UserError, match=r"No group's rewards varied in 2 generations"):
        trainer.train()
    assert trainer.state.global_step == 2  # the second generation, of six


@pytest.mark.slow
def test_training_stops_if_no_reply_can_be_read(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, "checks.patience=2", "model.scratch.warmup_steps=0")
    with pytest.raises(UserError, match=r"reply format has collapsed: 100% .* 2 generations"):
        trainer.train()


@pytest.mark.slow
def test_a_run_without_faults_passes_the_same_checks(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, "checks.patience=2", "trainer.max_steps=4")
    trainer.train()
    assert trainer.state.global_step == 4

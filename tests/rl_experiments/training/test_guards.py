"""Training stops, with the reason, when it cannot be right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from environments import Step
from environments.game2048 import Game2048
from rl_experiments.checkpoints.checkpointer import Checkpointer
from rl_experiments.config.experiment import Experiment
from rl_experiments.config.registration import register
from rl_experiments.errors import UserError
from rl_experiments.inference.sampler import Engine, Sampler
from rl_experiments.inference.transformers_sampler import TransformersSampler
from rl_experiments.models.policy import load_policy
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from rl_experiments.run.recorder import RunRecorder
from rl_experiments.tracking.base import LoggedRun
from rl_experiments.tracking.loggers import Loggers
from rl_experiments.training.build import build_trainer
from rl_experiments.training.grpo_config import make_grpo_config
from rl_experiments.training.trainer import EpisodeTrainer
from tests.support.program import SMALL


@pytest.fixture(autouse=True)
def cache_of_this_session(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make each tiny model once for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def small_trainer(
    folder: Path,
    *overrides: str,
    environment: Game2048 | None = None,
    engine: Callable[[Any], Engine] | None = None,
) -> EpisodeTrainer:
    """Return the trainer of a small run, optionally with another environment or engine."""
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", [*SMALL, "name=guard", "trainer.max_steps=12", *overrides])
    experiment = check(cfg)
    policy = load_policy(experiment.config, experiment.environment, folder)
    if environment:
        experiment = Experiment(experiment.config, environment)
    if engine:
        policy = replace(policy, engine=engine(policy.model))
    config = experiment.config
    loggers = Loggers(LoggedRun(folder, 12, config.logger, {}, print))
    run = RunRecorder(folder, loggers, Checkpointer(folder, config.checkpoint, print))
    return build_trainer(experiment, run, policy, make_grpo_config(config, run.checkpoints))


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
def test_the_engine_is_compared_with_the_policy_at_each_sync(tmp_path: Path) -> None:
    trainer = small_trainer(
        tmp_path, "trainer.max_steps=6", "trainer.learning_rate=0.02", engine=CopyEngine
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

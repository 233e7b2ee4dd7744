"""Training stops, and says why, when it cannot be right."""

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
from rl_experiments.config.schema import register
from rl_experiments.errors import UserError
from rl_experiments.inference.sampler import Engine, Sampler
from rl_experiments.inference.transformers_sampler import TransformersSampler
from rl_experiments.models.policy import load_policy
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from rl_experiments.run.recorder import RunRecorder
from rl_experiments.tracking.loggers import Job, Loggers
from rl_experiments.training.grpo import build_trainer, trainer_arguments
from rl_experiments.training.trainer import EpisodeTrainer
from tests.support.program import SMALL


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def trainer(
    folder: Path,
    *overrides: str,
    environment: Game2048 | None = None,
    engine: Callable[[Any], Engine] | None = None,
) -> EpisodeTrainer:
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
    loggers = Loggers(Job(folder, 12, config.logger, {}, print))
    run = RunRecorder(folder, loggers, Checkpointer(folder, config.checkpoint, print))
    return build_trainer(experiment, run, policy, trainer_arguments(config, run))


def test_a_sampler_with_frozen_weights_is_noticed(tmp_path: Path) -> None:
    # Training works on these weights, yet the sampler never sees them change.
    frozen = trainer(tmp_path, "trainer.learning_rate=0.02")
    before = AutoModelForCausalLM.from_pretrained(frozen.model.name_or_path)
    frozen.rollout.sampler.model = before  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"sampler and the trainer disagree.*checks\.max_logp"):
        frozen.train()


def test_a_sampler_at_another_temperature_is_noticed(tmp_path: Path) -> None:
    hot = trainer(tmp_path)
    hot.rollout.sampler.temperature = 1.5  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="sampler and the trainer disagree"):
        hot.train()


class Copy:
    """An engine with weights of its own, as vLLM's are; after `syncs` they stay what they are."""

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
        found = []
        for prompt, reply in sequences:
            with torch.no_grad():
                logits = self.model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(reply).unsqueeze(1))
            found.append(chosen.squeeze(1).tolist())
        return found

    def sampler(self, model: Any, **settings: Any) -> Sampler:
        return CopySampler(self, model, pad_token_id=0, **settings)

    def close(self) -> None:
        pass


class CopySampler(TransformersSampler):
    def __init__(self, engine: Copy, model: Any, **settings: Any) -> None:
        super().__init__(engine.model, **settings)
        self.engine = engine
        self.policy = model

    def begin(self, policy_version: int | None) -> None:
        assert self.engine is not None
        self.engine.load(self.policy, policy_version=policy_version)
        super().begin(self.engine.policy_version)


def test_an_engine_is_proven_to_be_the_policy_at_each_sync(tmp_path: Path) -> None:
    sound = trainer(tmp_path, "trainer.max_steps=6", "trainer.learning_rate=0.02", engine=Copy)
    sound.train()
    logged = [r["sampling/sync_logp_difference/mean"] for r in sound.state.log_history[:-1]]
    assert len(logged) == 3 and max(logged) < 1e-5


def test_an_engine_whose_weights_stay_what_they_were_stops_the_run(tmp_path: Path) -> None:
    frozen = trainer(
        tmp_path, "trainer.learning_rate=0.02", engine=lambda model: Copy(model, syncs=1)
    )
    with pytest.raises(UserError, match=r"not the policy after a weight sync.*max_sync_diff"):
        frozen.train()
    assert frozen.state.global_step == 2  # at the first sync that did nothing


def test_an_engine_that_plays_an_old_version_stops_the_run(tmp_path: Path) -> None:
    late = trainer(tmp_path, engine=lambda model: Copy(model, versions=1))
    with pytest.raises(UserError, match=r"played policy version 0, the trainer is at 2"):
        late.train()


@dataclass
class Flat(Game2048):
    """Every episode is worth the same."""

    def step(self, reply: str) -> Step:
        step = super().step(reply)
        return Step(observation=step.observation, end=step.end, episode_reward=1.0)


def test_rewards_that_never_vary_are_noticed(tmp_path: Path) -> None:
    flat = trainer(tmp_path, "checks.patience=2", environment=Flat(max_moves=3, earlier_turns=0))
    with pytest.raises(UserError, match=r"No group's rewards varied in 2 generations"):
        flat.train()
    assert flat.state.global_step == 2  # stopped at the second generation, not at the end


def test_a_collapsed_reply_format_is_noticed(tmp_path: Path) -> None:
    mute = trainer(tmp_path, "checks.patience=2", "model.scratch.warmup_steps=0")
    with pytest.raises(UserError, match=r"reply format has collapsed: 100% .* 2 generations"):
        mute.train()


def test_a_sound_run_passes_the_same_checks(tmp_path: Path) -> None:
    sound = trainer(tmp_path, "checks.patience=2", "trainer.max_steps=4")
    sound.train()
    assert sound.state.global_step == 4

"""Training stops, and says why, when it cannot be right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from environments import Step
from environments.game2048 import Game2048
from rl_experiments.check import Experiment, check
from rl_experiments.errors import UserError
from rl_experiments.grpo import build_trainer, trainer_arguments
from rl_experiments.policy import load_policy
from rl_experiments.run import Run
from rl_experiments.schema import CONF_DIR, register
from rl_experiments.trainer import EpisodeTrainer
from tests.conftest import SMALL


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def trainer(folder: Path, *overrides: str, environment: Game2048 | None = None) -> EpisodeTrainer:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", [*SMALL, "name=guard", "trainer.max_steps=12", *overrides])
    experiment = check(cfg)
    policy = load_policy(experiment.config, experiment.environment)
    if environment:
        experiment = Experiment(experiment.config, environment)
    run = Run(folder)
    return build_trainer(experiment, run, policy, trainer_arguments(experiment.config, run))


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

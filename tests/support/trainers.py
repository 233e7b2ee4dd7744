"""Settings and trainers of small runs, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from environments import Environment
from rl_experiments.checkpoints.checkpointer import Checkpointer
from rl_experiments.config.experiment import Experiment
from rl_experiments.config.registration import register
from rl_experiments.inference.sampler import Engine
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


def composed(*overrides: str) -> DictConfig:
    """Return the settings as Hydra composes them.

    Composing takes a third of a second: it is done once for equal choices of groups (`env=...`),
    and settings (`trainer.beta=0.1`) are changed in a copy.
    """
    choices = tuple(each for each in overrides if "." not in each.partition("=")[0])
    cfg = _composed(choices).copy()
    with open_dict(cfg):
        for each in OverridesParser.create().parse_overrides(
            [each for each in overrides if each not in choices]
        ):
            OmegaConf.update(cfg, each.key_or_group, each.value(), force_add=each.is_add())
    return cfg


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        return compose("config", list(overrides))


def small_trainer(
    folder: Path,
    *overrides: str,
    environment: Environment | None = None,
    engine: Callable[[Any], Engine] | None = None,
) -> EpisodeTrainer:
    """Return the trainer of a small run, optionally with another environment or engine.

    Its checkpoints are complete ones, in `folder`/checkpoints.
    """
    experiment = check(composed(*SMALL, "name=small", "trainer.max_steps=12", *overrides))
    # The tiny model is made for the environment of the settings.
    made_for = experiment.environment if experiment.config.model.scratch else environment
    policy = load_policy(experiment.config, made_for or experiment.environment, folder, trains=True)
    if environment:
        experiment = Experiment(experiment.config, environment)
    if engine:
        policy = replace(policy, engine=engine(policy.model))
    config = experiment.config
    loggers = Loggers(LoggedRun(folder, 12, config.logger, {}, print))
    run = RunRecorder(folder, loggers, Checkpointer(folder, config.checkpoint, print))
    return build_trainer(experiment, run, policy, make_grpo_config(config, run.checkpoints))

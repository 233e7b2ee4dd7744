"""Refuse what cannot work before any work is done: settings, files, addresses, keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from environments import Environment
from rl_experiments.checkpoints.resolve import is_url, locate
from rl_experiments.config.credentials import refuse_credentials
from rl_experiments.config.environment import build_environment
from rl_experiments.config.experiment import Experiment
from rl_experiments.config.schema import Config
from rl_experiments.config.validate import check_settings, typed_config
from rl_experiments.errors import UserError, did_you_mean
from rl_experiments.evaluation.played_environment import played_environment
from rl_experiments.evaluation.policies import is_api_model, resolve_policies
from rl_experiments.inference.api_client import LOCAL_HOSTS
from rl_experiments.paths import CONF_DIR
from rl_experiments.run.resume import check_resume
from rl_experiments.tracking.loggers import check_known


def compose_and_check(overrides: Sequence[str], *, example: str, **defaults: str) -> Experiment:
    """Compose and check the settings of a verb that has no run folder.

    `defaults` are values for settings that no override sets. `example` is shown when a word is an
    option rather than a setting.
    """
    if any(word.startswith("-") for word in overrides):
        raise UserError(f"only settings are taken here, such as {example}")
    overridden = {word.split("=")[0] for word in overrides}
    words = [f"{key}={value}" for key, value in defaults.items() if key not in overridden]
    words += played_environment(overrides)
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        return check(compose(config_name="config", overrides=[*overrides, *words]))


def check(cfg: DictConfig) -> Experiment:
    """Return the typed configuration with its environment, ready to run.

    Raises a `UserError` that names the first setting that is wrong. The launcher calls this for
    every job before it starts the first one, and each job calls it once more.
    """
    refuse_credentials(_plain_settings(cfg))
    config = typed_config(cfg)
    check_resume(cfg)
    environment = build_environment(config.env)
    check_settings(config)
    _check_scripted_policy(config, environment)
    runs_on_modal = config.gpu.type != "local" and not os.environ.get("MODAL_TASK_ID")
    check_known(config.logger)
    if runs_on_modal:
        _refuse_local_files(config)
    elif config.checkpoint.path and not is_url(config.checkpoint.path):
        config.checkpoint.path = str(locate(config.checkpoint.path))
    model = config.model
    if not config.checkpoint.path and not (model.path or model.scratch or model.base_url):
        raise UserError("model.path: name a Hugging Face model or a folder, or set model.scratch")
    if config.policies or is_api_model(config):
        resolve_policies(config, environment, elsewhere=runs_on_modal)
    return Experiment(config, environment)


def _plain_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings with their interpolations, which stand for what may be secret."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items() if key != "hydra"}
    if HydraConfig.initialized():  # they are written down as well, from wherever they come
        hydra = cast(DictConfig, HydraConfig.get())
        written = OmegaConf.masked_copy(hydra, ["launcher", "job", "sweep", "sweeper"])
        settings["hydra"] = OmegaConf.to_container(written, resolve=False)
    return settings


def _check_scripted_policy(config: Config, environment: Environment) -> None:
    if config.policy and config.policy not in environment.baselines:
        hint = did_you_mean(config.policy, environment.baselines)
        raise UserError(
            f"policy={config.policy}: {config.env.get('name')} has no such policy{hint}"
        )


def _refuse_local_files(config: Config) -> None:
    """Refuse settings that name what only this machine has, for a job that runs on Modal."""
    gpu = config.gpu.type.lower()
    judge = config.judge.base_url
    if config.reward.ruler.enabled and judge and urlsplit(judge).hostname in LOCAL_HOSTS:
        raise UserError(f"judge.base_url={judge}: is on this machine, which gpu={gpu} cannot see")
    paths: dict[str, str | None] = {
        "checkpoint": config.checkpoint.path,
        "model.path": config.model.path,
    }
    for key, value in config.env.items():
        # Without a suffix it may be a word that happens to be the name of a folder here.
        if isinstance(value, str) and Path(value).suffix:
            paths[f"env.{key}"] = value
    paths["policies"] = next((word for word in config.policies if os.path.isdir(word)), None)
    for name, path in paths.items():
        if path and Path(path).exists():
            raise UserError(
                f"{name}={path}: is on this machine, which gpu={gpu} cannot see; give a folder of "
                "the outputs volume (/outputs/RUN/JOB), or use gpu=local"
            )

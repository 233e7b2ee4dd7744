"""The `policies` setting resolved to policies that can play."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from environments import Environment
from rl_experiments.checkpoints.resolve import is_url, locate
from rl_experiments.config.schema import Config, ModelConfig
from rl_experiments.errors import UserError, did_you_mean
from rl_experiments.inference.api_client import api_key
from rl_experiments.paths import CONF_DIR

CONFIGURED_MODEL = "model"  # in `policies`: the model or checkpoint that the other settings name


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy that takes part in an evaluation.

    `config` is the job's configuration with this policy's own model or checkpoint in it.
    """

    name: str
    config: Config
    is_scripted: bool = False

    @property
    def is_api_model(self) -> bool:
        """Whether the policy is a model behind an API."""
        return not self.is_scripted and is_api_model(self.config)


def is_api_model(config: Config) -> bool:
    """Return whether the configuration's policy is a model behind an API."""
    return config.model.base_url is not None and config.checkpoint.path is None


def resolve_policies(
    config: Config, environment: Environment, *, elsewhere: bool = False
) -> list[EvaluatedPolicy]:
    """Return the policies that `policies` lists; without it, the one of `policy`, or the model.

    A job that runs `elsewhere` has folders that this machine does not see, so absolute paths are
    taken as they are. Raises a `UserError` for a policy that cannot play.
    """
    if config.policies and config.policy:
        raise UserError(
            f"policy={config.policy}: policies=[...] is set too; list {config.policy} there instead"
        )
    names = config.policies or [config.policy or CONFIGURED_MODEL]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"policies: {name} is listed twice")
    policies = [_resolve(name, config, environment, elsewhere=elsewhere) for name in names]
    for policy in policies:
        if policy.is_api_model:
            api_key(policy.config.model, "model")  # raises if there is none
        elif not policy.is_scripted and policy.name in environment.baselines:
            raise UserError(
                f"{policy.name}: this model has the name of a scripted policy of "
                f"env={config.env.get('name')}; rename it"
            )
    return policies


def _resolve(
    name: str, config: Config, environment: Environment, *, elsewhere: bool
) -> EvaluatedPolicy:
    """Return the policy that one entry of `policies` names."""
    if name in environment.baselines:
        return EvaluatedPolicy(name, config, is_scripted=True)
    if name == CONFIGURED_MODEL:
        path = config.checkpoint.path
        return EvaluatedPolicy(Path(path).name if path else config.model.name, config)
    model_files = {file.stem: file for file in sorted((CONF_DIR / "model").glob("*.yaml"))}
    policy_config = deepcopy(config)
    if is_url(name) or (elsewhere and name.startswith("/")):
        policy_config.checkpoint.path = name
    elif os.path.isdir(name):  # which takes a name that is too long for a path as well
        policy_config.checkpoint.path = str(locate(name))
    elif name in model_files:
        policy_config.checkpoint.path = None
        policy_config.model = _load_model_config(model_files[name])
    elif config.model.base_url is not None:
        policy_config.checkpoint.path = None
        policy_config.model.name = name
    else:
        known = [*environment.baselines, *model_files, CONFIGURED_MODEL]
        raise UserError(
            f"policies: {name} is no scripted policy of env={config.env.get('name')}, no "
            f"model in conf/model and no checkpoint{did_you_mean(name, known)}"
        )
    return EvaluatedPolicy(name, policy_config)


def _load_model_config(file: Path) -> ModelConfig:
    """Read a model's settings from conf/model; settings for training in the file are ignored."""
    loaded = OmegaConf.load(file)
    settings = OmegaConf.select(loaded, "model", default=loaded)
    typed = OmegaConf.merge(OmegaConf.structured(ModelConfig), settings)
    missing = sorted(map(str, OmegaConf.missing_keys(typed)))
    if missing:
        raise UserError(
            f"policies: {file.stem} needs model.{missing[0]}; choose it with model={file.stem} "
            f"model.{missing[0]}=... and list it as {CONFIGURED_MODEL} in policies"
        )
    model = OmegaConf.to_object(typed)
    assert isinstance(model, ModelConfig)
    return model

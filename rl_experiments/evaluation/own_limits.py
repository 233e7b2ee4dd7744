"""How long the replies of each policy may be where the settings are those of the tiny model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_experiments.config.overrides import override_texts
from rl_experiments.config.schema import Config, ModelConfig, TrainerConfig
from rl_experiments.evaluation.played_environment import settings_of_run
from rl_experiments.evaluation.policies import EvaluatedPolicy
from rl_experiments.paths import CONF_DIR

_LIMIT = "trainer.max_completion_length"


def with_own_limits(
    policy: EvaluatedPolicy, configured: Config, overrides: Sequence[str]
) -> EvaluatedPolicy:
    """Return the policy with the limits of its own model in place of those of the tiny model.

    Without `model=...` the configured model is the tiny one, whose replies are a few tokens long.
    A checkpoint of another model has the limits of its run, any other model those that
    `model=NAME` would give it. What an override sets stays.
    """
    config = policy.config
    if policy.is_scripted or configured.model.scratch is None:
        return policy
    texts = override_texts(overrides)
    limit: object = None
    model = config.model
    run = settings_of_run(config.checkpoint.path) if config.checkpoint.path else None
    if run is not None:
        model = _model_of(run) or model
        if model.scratch is not None or "model" in texts:
            return policy
        limit = OmegaConf.select(OmegaConf.create(run), _LIMIT)
        for key in texts:
            group, _, setting = key.partition(".")
            if group == "model" and hasattr(model, setting):
                setattr(model, setting, getattr(config.model, setting))
    elif model.scratch is not None and not config.checkpoint.path and not policy.is_api_model:
        return policy
    if not isinstance(limit, int):
        limit = _limit_of(policy.name, str(config.env.get("name")), texts)
    if _LIMIT in texts:
        limit = config.trainer.max_completion_length
    trainer = replace(config.trainer, max_completion_length=limit)
    return replace(policy, config=replace(config, model=model, trainer=trainer))


def _limit_of(name: str | None, env: str, texts: Mapping[str, str]) -> int:
    """Return the limit that conf/ has for a model of this name, the most specific one first."""
    choices = [
        ("experiment", texts.get("experiment")),
        ("preset", f"{env}_{name}"),
        ("model", name),
    ]
    for folder, choice in choices:
        file = CONF_DIR / folder / f"{choice}.yaml"
        if choice and "/" not in choice and os.path.isfile(file):  # a name may be too long
            limit = OmegaConf.select(OmegaConf.load(file), _LIMIT)
            if isinstance(limit, int):
                return limit
    return TrainerConfig().max_completion_length


def _model_of(run: Mapping[str, Any]) -> ModelConfig | None:
    """Return the model in a run's settings; None if they are not those of a model."""
    try:
        typed = OmegaConf.merge(OmegaConf.structured(ModelConfig), run.get("model"))
        model = OmegaConf.to_object(typed)
    except (OmegaConfBaseException, ValueError, TypeError):
        return None
    return model if isinstance(model, ModelConfig) else None

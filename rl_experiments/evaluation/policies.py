"""Who plays in an evaluation: scripted policies, models, checkpoints, models behind endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from environments import Environment
from rl_experiments.checkpoints import local as checkpoint
from rl_experiments.checkpoints.store import is_remote
from rl_experiments.config.schema import CONF_DIR, Config, ModelConfig
from rl_experiments.errors import UserError, did_you_mean
from rl_experiments.inference.api_client import api_key

OWN = "model"  # in `policies`: the model or the checkpoint of the configuration


@dataclass(frozen=True)
class EvaluatedPolicy:
    """`config` is that of the job with the contestant's own model."""

    name: str
    config: Config
    is_scripted: bool = False

    @property
    def is_remote(self) -> bool:
        return not self.is_scripted and is_endpoint(self.config)


def is_endpoint(config: Config) -> bool:
    return config.model.base_url is not None and config.checkpoint.path is None


def resolve_policies(
    config: Config, environment: Environment, *, elsewhere: bool = False
) -> list[EvaluatedPolicy]:
    """Those of the `policies` setting; else the scripted `policy`, or the model.

    Raises a `UserError` for one that cannot play. A job that runs `elsewhere` has folders that
    this machine does not see.
    """
    words = config.policies or [config.policy or OWN]
    if config.policies and config.policy:
        raise UserError(f"policy={config.policy}: give it in policies=[...] with the others")
    for word in words:
        if words.count(word) > 1:
            raise UserError(f"policies: {word} is there twice")
    found = [_contestant(word, config, environment, elsewhere=elsewhere) for word in words]
    for contestant in found:
        if contestant.is_remote:
            api_key(contestant.config.model, "model")
        elif not contestant.is_scripted and contestant.name in environment.baselines:
            raise UserError(f"{contestant.name}: named like a scripted policy; rename it")
    return found


def _contestant(
    word: str, config: Config, environment: Environment, *, elsewhere: bool
) -> EvaluatedPolicy:
    if word in environment.baselines:
        return EvaluatedPolicy(word, config, is_scripted=True)
    if word == OWN:
        path = config.checkpoint.path
        return EvaluatedPolicy(Path(path).name if path else config.model.name, config)
    own = deepcopy(config)
    if is_remote(word) or (elsewhere and word.startswith("/")):
        own.checkpoint.path = word
    elif Path(word).is_dir():
        own.checkpoint.path = str(checkpoint.find(word))
    elif word in (choices := dict(_models())):
        own.checkpoint.path = None
        own.model = _model(choices[word])
    elif config.model.base_url is not None:
        own.checkpoint.path = None
        own.model.name = word
    else:
        known = [*environment.baselines, *choices, OWN]
        raise UserError(
            f"policies: {word} is no scripted policy of env={config.env.get('name')}, no "
            f"model in conf/model and no checkpoint{did_you_mean(word, known)}"
        )
    return EvaluatedPolicy(word, own)


def _models() -> Iterator[tuple[str, Path]]:
    for file in sorted((CONF_DIR / "model").glob("*.yaml")):
        yield file.stem, file


def _model(file: Path) -> ModelConfig:
    """A model's own settings; what it says of training has no part here."""
    loaded = OmegaConf.load(file)
    own = OmegaConf.select(loaded, "model", default=loaded)
    typed = OmegaConf.merge(OmegaConf.structured(ModelConfig), own)
    missing = sorted(map(str, OmegaConf.missing_keys(typed)))
    if missing:
        raise UserError(
            f"policies: {file.stem} needs model.{missing[0]}; choose it by model={file.stem} "
            f"model.{missing[0]}=... and name it {OWN} in policies"
        )
    model = OmegaConf.to_object(typed)
    assert isinstance(model, ModelConfig)
    return model

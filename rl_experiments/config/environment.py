"""Build the environment that the `env` settings describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from environments import Environment
from rl_experiments.errors import UserError, did_you_mean, one_line

# Classes that have moved, by the `_target_` that run folders of earlier versions hold.
FORMER_TARGETS = {
    "environments.adapters.gymnasium_text.GymnasiumText": "environments.adapters.GymnasiumText",
}
# Keys of `env` that are not settings of the class: its variant is shown, its settings make it one.
_NO_SETTINGS = ("_target_", "name", "variant")


def environment_name(env: Mapping[str, Any]) -> str:
    """Return the name of the environment as tables show it, with its variant if it has one."""
    name, variant = env.get("name"), env.get("variant")
    return f"{name} (variant {name}_{variant})" if variant else str(name)


def environment_settings(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make the environment what it is, by their names."""
    return {str(key): value for key, value in env.items() if key not in _NO_SETTINGS}


def environment_class(target: str | None) -> type[Environment]:
    """Return the class that `env._target_` names.

    Raises a `UserError` if it cannot be imported or is not a subclass of `Environment`.
    """
    if not target:
        raise UserError("env._target_ is missing: name the environment's class in its YAML")
    try:
        cls = get_class(FORMER_TARGETS.get(target, target))
    except Exception as error:
        raise UserError(
            f"env._target_={target} cannot be imported: {one_line(str(error))}"
        ) from None
    if not issubclass(cls, Environment):
        raise UserError(f"env._target_={target} is not a subclass of environments.Environment")
    return cls


def build_environment(env: Mapping[str, Any]) -> Environment:
    """Return the environment of the `env` settings, checked against the fields of its class.

    Raises a `UserError` for a setting that the class does not have or whose value it refuses.
    """
    cls = environment_class(env.get("_target_"))
    settings = environment_settings(env)
    known = [field.name for field in fields(cls)]
    for key in settings:
        if key not in known:
            raise UserError(
                f"env.{key}: {cls.__name__} has no such setting{did_you_mean(key, known)}"
            )
    try:
        typed = OmegaConf.merge(OmegaConf.structured(cls), settings)
        environment = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        reason = one_line(str(error).split("full_key:")[0])
        raise UserError(f"env.{error.full_key or '?'}: {reason}") from None
    except ValueError as error:  # from __post_init__, which refuses values
        raise UserError(one_line(str(error))) from None
    assert isinstance(environment, Environment)
    if "random" not in cls.baselines:
        raise UserError(
            f"{cls.__name__}.baselines has no 'random' policy, which every environment needs"
        )
    return environment

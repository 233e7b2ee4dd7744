"""Register with Hydra what conf/ refers to: the schema, the resolvers, folders outside."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from rl_experiments.config.schema import Config, VllmMode
from rl_experiments.paths import CONF_DIR

_DISTRIBUTION = "rl-experiments"
# The versions that are installed here, which a job on Modal gets as well.
_LOCK_FILE = "requirements.lock"  # lies beside conf/, in a checkout and in a wheel
# Packages of an environment that are installed with --no-deps: bfcl-eval would otherwise pull in
# gigabytes of packages that grading does not need.
_PACKAGES_WITHOUT_DEPENDENCIES = {"bfcl_single_turn": ["bfcl-eval==2026.3.23"]}


def register() -> None:
    """Register the schema and the resolvers that conf/ uses."""
    ConfigStore.instance().store("schema", Config)
    resolvers: dict[str, Callable[..., Any]] = {
        "default_model": default_model,
        "requirements": _requirements_file,
        "extras": _packages_of_extras,
        "extras_no_deps": _packages_without_dependencies,
        "processes": _training_processes,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def register_search_path(overrides: Sequence[str]) -> None:
    """Let `default_model` find environments in the folders of an override `hydra.searchpath=[...]`.

    An override that cannot be parsed is left for Hydra to report.
    """
    for override in overrides:
        if override.startswith("hydra.searchpath="):
            with suppress(HydraException):
                value = OverridesParser.create().parse_override(override).value()
                folders = value if isinstance(value, list) else []
                _CommandLineSearchPath.folders = [str(folder) for folder in folders]
            Plugins.instance().register(_CommandLineSearchPath)


def default_model(gpu: str, env: str) -> str:
    """Return the model to use when none is chosen, as a name in conf/model.

    It is `tiny` on this machine, and what the environment recommends on a GPU at Modal.
    """
    if gpu == "local":
        return "tiny"
    return str(_environment_class(env).recommended_model)


class _CommandLineSearchPath(SearchPathPlugin):
    """Hydra's plugin point for `hydra.searchpath`, which resolvers must see as well."""

    folders: ClassVar[list[str]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append("command line", folder)


def _environment_class(env: str) -> Any:
    """Return the class of a choice `env=...`, wherever on the search path its YAML lies."""
    from rl_experiments.config.environment import environment_class

    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.is_config(f"env/{env}"):
            return environment_class(source.load_config(f"env/{env}").config["_target_"])
    raise LookupError(env)


def _training_processes(gpus: int, mode: VllmMode | str, server_gpus: int) -> int:
    """Return how many processes train: one for each GPU that the vLLM server does not take."""
    has_server = getattr(mode, "value", mode) == VllmMode.server.value
    return max(1, gpus - server_gpus) if has_server else gpus


def _packages_of_extras(*names: str) -> list[str]:
    """Return the requirements of these optional dependencies; an environment's has its name."""
    extras = {re.sub(r"[-_.]+", "-", name) for name in names}
    try:
        lines = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:  # not installed, only on the path: it starts no jobs on Modal
        return []
    packages = []
    for line in lines:
        requirement, _, extra = line.partition(" extra == ")
        if extra.strip("'\"") in extras:
            packages.append(re.sub(r"\s*(;|and)$", "", requirement))
    return packages


def _packages_without_dependencies(env: str) -> list[str]:
    return list(_PACKAGES_WITHOUT_DEPENDENCIES.get(env, []))


def _requirements_file() -> str:
    return str(CONF_DIR.parent / _LOCK_FILE)

"""Composes the jobs of a sweep as Hydra does, but reads and merges each file once.

It overrides private methods of Hydra 1.3.8. With any other version, or if its result differs from
Hydra's own for the first job of a sweep, Hydra's own loader composes all jobs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

HYDRA_VERSION = "1.3.8"  # whose private methods are overridden here
_MAX_KEPT = 1000  # composed jobs, and combinations of files


class SweepLoader(ConfigLoaderImpl):
    """Takes the place of Hydra's own loader, for its sweeper as well.

    A sweeper composes every job to see whether it can be composed, then its launcher composes it
    again: `take` returns what the sweeper composed. A job whose overrides are those of the sweep
    has the sweep's own configuration, so a single job is not composed again.
    """

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self.config_search_path = loader.config_search_path
        self.repository = loader.repository
        self._own = loader
        self._is_quick: bool | None = None  # None until a first job was composed in both ways
        self._first: tuple[DictConfig, list[str], DictConfig] | None = None
        self._composed: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
        self._files: dict[tuple[str | None, ...], CachingConfigRepository] = {}
        self._merged: dict[object, DictConfig] = {}

    @classmethod
    def over(cls, loader: ConfigLoader) -> ConfigLoader:
        """Return a faster loader with the same results, or the loader itself if none is known."""
        if hydra.__version__ != HYDRA_VERSION or type(loader) is not ConfigLoaderImpl:
            return loader
        return cls(loader)

    def take(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of a job for the caller to keep and change."""
        composed_for, config = self._composed.pop(tuple(overrides), (None, None))
        if config is None or composed_for is not master:
            config = self._compose(master, list(overrides))
        return config

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Compose a job, as Hydra's own method of this name does."""
        config = self._compose(master_config, sweep_overrides)
        if len(self._composed) < _MAX_KEPT:
            self._composed[tuple(sweep_overrides)] = (master_config, config)
        return config

    def _compose(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        if _is_same(master, overrides):
            return copy.deepcopy(master)
        if self._is_quick is None:
            if self._first is None:  # a single job needs no speed
                config = self._own.load_sweep_config(master, overrides)
                self._first = (master, list(overrides), copy.deepcopy(config))
                return config
            first_master, first_overrides, expected = self._first
            quick = super().load_sweep_config(first_master, first_overrides)
            self._is_quick = _content(quick) == _content(expected)
        if self._is_quick:
            return super().load_sweep_config(master, overrides)
        return self._own.load_sweep_config(master, overrides)

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        key = (config_name, *(word for word in overrides if "hydra.searchpath" in word))
        if key in self._files:
            return OverridesParser.create().parse_overrides(overrides), self._files[key]
        parsed, files = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        self._files[key] = files
        return parsed, files

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        assert isinstance(repo, CachingConfigRepository)
        key = (id(repo), *((d.config_path, d.package, d.is_self, d.primary) for d in defaults))
        merged = self._merged.get(key)
        if merged is None:
            # Merging changes the files that were read, which other combinations share.
            files = CachingConfigRepository(repo.delegate)
            merged = super()._compose_config_from_defaults_list(defaults, files)
            if len(self._merged) < _MAX_KEPT:
                self._merged[key] = merged
        return copy.deepcopy(merged)


def _is_same(master: DictConfig, overrides: list[str]) -> bool:
    """Return whether a job with these overrides has the configuration of the sweep itself.

    Only for a sweep, Hydra leaves out groups without a choice and takes several values.
    """
    hydras = master.hydra
    if list(hydras.overrides.task) != overrides or OmegaConf.missing_keys(hydras.runtime.choices):
        return False
    words = OverridesParser.create().parse_overrides(overrides)
    return not any(word.is_sweep_override() for word in words)


def _content(config: DictConfig) -> tuple[Any, dict[str, Any]]:
    """Return the values and the types of the top-level nodes, interpolations kept."""
    types = {str(key): OmegaConf.get_type(config._get_node(key)) for key in config}
    return OmegaConf.to_container(config), types

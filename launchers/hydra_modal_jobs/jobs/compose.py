"""Composes the jobs of a sweep as Hydra does, reading and merging each file once, not per job."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

_MOST = 1000  # composed jobs, and choices of files, that are kept


class SweepLoader(ConfigLoaderImpl):
    """Takes the place of Hydra's own loader, for its sweeper as well.

    A sweeper composes every job to see whether it can be, then its launcher composes it again:
    `taken` hands out what the sweeper composed.
    """

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self.config_search_path = loader.config_search_path
        self.repository = loader.repository
        self._composed: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
        self._files: dict[tuple[str | None, ...], CachingConfigRepository] = {}
        self._merged: dict[object, DictConfig] = {}

    @classmethod
    def over(cls, loader: ConfigLoader) -> ConfigLoader:
        """A faster loader with the same answers, where it is known how to make one."""
        return cls(loader) if type(loader) is ConfigLoaderImpl else loader

    def taken(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job, for whoever asks first to keep and change."""
        before, config = self._composed.pop(tuple(overrides), (None, None))
        if config is None or before is not master:
            config = super().load_sweep_config(master, list(overrides))
        return config

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        config = super().load_sweep_config(master_config, sweep_overrides)
        if len(self._composed) < _MOST:
            self._composed[tuple(sweep_overrides)] = (master_config, config)
        return config

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
            # Merging changes what was read, which must not be what other choices share.
            files = CachingConfigRepository(repo.delegate)
            merged = super()._compose_config_from_defaults_list(defaults, files)
            if len(self._merged) < _MOST:
                self._merged[key] = merged
        return copy.deepcopy(merged)

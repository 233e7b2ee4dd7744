"""The one place that changes private parts of Hydra; it was written for Hydra 1.3.8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

_HYDRA_VERSION = "1.3.8"
_METHOD = "_parse_overrides_and_create_caching_repo"
_GET_MODE = "get_mode"


@contextmanager
def fast_help() -> Iterator[None]:
    """Make `--help` answer in half the time within this context, with the same text.

    To list the choices of a group, Hydra copies all configs that it has read so far, once more for
    each group. Here it copies them once. With another version of Hydra, nothing is changed.
    """
    original = getattr(ConfigLoaderImpl, _METHOD, None)
    if hydra.__version__ != _HYDRA_VERSION or original is None:
        yield
        return
    parsed: dict[tuple[str | None, ...], Any] = {}

    def parse_once(loader: ConfigLoaderImpl, config_name: str | None, overrides: list[str]) -> Any:
        key = (config_name, *overrides)
        if key not in parsed:
            parsed[key] = original(loader, config_name, overrides)
        return parsed[key]

    setattr(ConfigLoaderImpl, _METHOD, parse_once)
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, _METHOD, original)


@contextmanager
def always_multirun() -> Iterator[None]:
    """Make a command line start faster within this context, as a sweep of its jobs.

    Hydra composes the whole configuration only to read `hydra.mode`, and then composes it again.
    conf/config.yaml sets MULTIRUN, and nothing else is accepted. With another version of Hydra,
    nothing is changed.
    """
    original = getattr(Hydra, _GET_MODE, None)
    if hydra.__version__ != _HYDRA_VERSION or original is None:
        yield
        return
    setattr(Hydra, _GET_MODE, lambda *_, **__: RunMode.MULTIRUN)
    try:
        yield
    finally:
        setattr(Hydra, _GET_MODE, original)

"""Composes a job of a sweep and freezes what would have another value elsewhere or later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from hydra.version import getbase
from omegaconf import DictConfig, ListConfig, open_dict
from packaging.version import Version

from hydra_modal_jobs.jobs import serialize
from hydra_modal_jobs.jobs.job import Job, activate, launcher_settings, writable
from hydra_modal_jobs.jobs.sweep_loader import SweepLoader


def compose(
    context: HydraContext,
    task: TaskFunction,
    master: DictConfig,
    overrides: Sequence[str],
    *,
    num: int,
) -> Job:
    """Compose job `num` of a sweep, whose own configuration is `master`."""
    loader = context.config_loader
    if isinstance(loader, SweepLoader):
        config = loader.take(master, overrides)
    else:
        config = loader.load_sweep_config(master, list(overrides))
    with open_dict(config):
        config.hydra.job.id = str(num)
        config.hydra.job.num = num
    activate(config)
    sweep, subdir = Path(str(config.hydra.sweep.dir)).absolute(), str(config.hydra.sweep.subdir)
    with writable(config):
        _freeze_times(config)
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(sweep), subdir
        config.hydra.runtime.output_dir = str(sweep / subdir)
        for name in config.hydra.job.env_copy:  # a file must not hold their values
            config.hydra.job.env_set.pop(name, None)
    payload = {
        "num": num,
        "overrides": [str(word) for word in config.hydra.overrides.task],
        "dir": str(sweep),
        "subdir": subdir,
        "task": serialize.task_reference(task),
        "name": str(config.hydra.job.name),
        **serialize.dump_config(config),
        "version_base": str(base) if isinstance(base := getbase(), Version) else None,
    }
    return Job(
        num=num,
        overrides=list(payload["overrides"]),
        config=config,
        settings=launcher_settings(config),
        folder=sweep / subdir,
        task=task,
        payload=payload,
    )


def _freeze_times(config: DictConfig | ListConfig) -> None:
    """Replace each `${now:...}` by the present time."""
    keys: Any = config.keys() if isinstance(config, DictConfig) else range(len(config))
    for key in list(keys):
        node = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            if not (node._is_none() or node._is_missing() or node._is_interpolation()):
                _freeze_times(node)
        elif "${now:" in str(getattr(node, "_value", lambda: "")()):
            config[key] = config[key]

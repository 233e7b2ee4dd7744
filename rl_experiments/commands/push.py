"""The `push` verb: copy the checkpoints of a run to its store, where they are missing there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rl_experiments.checkpoints.checkpointer import push as push_checkpoints
from rl_experiments.config.schema import CheckpointConfig
from rl_experiments.errors import UserError
from rl_experiments.paths import CONFIG_FILE, RUNS


def push(words: Sequence[str]) -> None:
    """Copy what is missing, job by job: `push RUN [checkpoint.store=...]`."""
    names = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if len(names) != 1:
        raise UserError("push takes one run: push RUN [checkpoint.store=...]")
    overrides = OverridesParser.create().parse_overrides(settings)
    for folder in _job_folders(names[0]):
        cfg = OmegaConf.load(folder / CONFIG_FILE)
        for override in overrides:
            OmegaConf.update(cfg, override.key_or_group, override.value())
        typed = OmegaConf.merge(OmegaConf.structured(CheckpointConfig), cfg.checkpoint)
        config = OmegaConf.to_object(typed)
        assert isinstance(config, CheckpointConfig)
        if not config.store:
            raise UserError(f"{folder}: was run without checkpoint.store=...; give one")
        steps = push_checkpoints(folder.absolute(), config, print)
        print(f"{folder}: steps {', '.join(map(str, steps)) or 'none'} are in {config.store}")


def _job_folders(run: str) -> list[Path]:
    """Return the folders of the jobs of a run, which is named or given as a path."""
    for folder in (RUNS / run, Path(run)):
        jobs = sorted(file.parent for file in folder.glob(f"*/{CONFIG_FILE}"))
        if jobs:
            return jobs
    raise UserError(f"{run}: no such run in {RUNS}/")

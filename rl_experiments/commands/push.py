"""The `push` verb: copy the checkpoints of a run to its store, where they are missing there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rl_experiments.checkpoints.checkpointer import push as push_checkpoints
from rl_experiments.commands.job import user_message
from rl_experiments.config.schema import CheckpointConfig
from rl_experiments.errors import UserError, one_line
from rl_experiments.paths import CONFIG_FILE, RUNS
from rl_experiments.terminal.text import print_line

_SHOWN_CHARACTERS = 200  # of what the YAML library says


def push(words: Sequence[str]) -> None:
    """Copy what is missing, job by job: `push RUN [checkpoint.store=...]`."""
    names = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if len(names) != 1:
        raise UserError("push takes one run: push RUN [checkpoint.store=...]")
    overrides = OverridesParser.create().parse_overrides(settings)
    failed = []
    for folder in _job_folders(names[0]):
        try:
            config = _checkpoint_settings(folder, overrides)
            if not config.store:
                failed.append(f"{folder}: was run without checkpoint.store=...; give one")
                continue
            steps = push_checkpoints(folder.absolute(), config, print_line)
        except (UserError, OSError) as error:  # of one job, which must not keep the others here
            failed.append(user_message(error) or str(error))
            continue
        shown = ", ".join(map(str, steps)) or "none"
        print_line(f"{folder}: steps {shown} are in {config.store}")
    for line in failed[1:]:
        print_line(line, is_error=True)
    if failed:
        raise UserError(failed[0])


def _checkpoint_settings(folder: Path, overrides: Sequence[Override]) -> CheckpointConfig:
    """Return the `checkpoint` settings of a job with these overrides."""
    file = folder / CONFIG_FILE
    try:
        cfg = OmegaConf.load(file)
        if not (isinstance(cfg, DictConfig) and isinstance(cfg.get("checkpoint"), DictConfig)):
            raise ValueError("it has no checkpoint settings")
        for override in overrides:
            OmegaConf.update(cfg, override.key_or_group, override.value())
        typed = OmegaConf.merge(OmegaConf.structured(CheckpointConfig), cfg.checkpoint)
        config = OmegaConf.to_object(typed)
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"{file}: cannot be read as settings ({one_line(str(error))[:_SHOWN_CHARACTERS]}); "
            "take it from another copy of the run"
        ) from None
    assert isinstance(config, CheckpointConfig)
    return config


def _job_folders(run: str) -> list[Path]:
    """Return the folders of the jobs of a run, which is named or given as a path."""
    for folder in (RUNS / run, Path(run)):
        jobs = sorted(file.parent for file in folder.glob(f"*/{CONFIG_FILE}"))
        if jobs:
            return jobs
    raise UserError(f"{run}: no such run in {RUNS}/")

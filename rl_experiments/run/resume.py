"""What may differ between a run and its resumption, and the command that resumes it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rl_experiments.config.diff import changed_settings
from rl_experiments.config.schema import CheckpointConfig, EndpointConfig
from rl_experiments.errors import UserError
from rl_experiments.paths import CONFIG_FILE, RUNS

_MODEL_IDENTITY = ("base_url", "body")  # the settings that decide which model an API serves
# The settings that do not touch what was computed. A group stands for all settings in it.
CHANGEABLE_ON_RESUME = (
    "env.variant",  # a name; earlier versions did not record it
    *("resume", "trainer.max_steps", "num_examples", "logger"),
    *("evaluation.batch_size", "checks", "budget", "vllm", "memory", "fit", "policies"),
    *(f"model.{each.name}" for each in fields(EndpointConfig) if each.name not in _MODEL_IDENTITY),
    *(f"judge.{each.name}" for each in fields(EndpointConfig) if each.name not in _MODEL_IDENTITY),
    *(f"reward.ruler.{name}" for name in ("max_failures", "on_budget")),
    *(f"checkpoint.{each.name}" for each in fields(CheckpointConfig) if each.name != "path"),
    *(
        f"gpu.{name}"
        for name in ("type", "fallback", "cpu", "memory", "timeout", "region", "retries")
    ),
)


def changes_that_forbid_resume(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings, by full name, that differ and must not.

    Both are composed configurations as plain values, enums by their names.
    """
    return [key for key in changed_settings(before, now) if not _may_change(key)]


def refuse_changes(run_folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a `UserError` that names the first setting that must not differ from the run's own."""
    changed = changes_that_forbid_resume(before, now)
    if changed:
        raise UserError(
            f"{changed[0]} is not what it was when {run_folder} was begun; to resume, give the "
            "settings of then, or take another name=... for a new run"
        )


def check_resume(cfg: DictConfig, run_folder: Path | None = None) -> None:
    """Raise a `UserError` if a run that is to be resumed was begun with other settings.

    The run folder is by default that of the job that Hydra has composed, which may not have begun:
    the launcher asks before it starts a job, and the job asks again.
    """
    if run_folder is None:
        if not cfg.resume or not HydraConfig.initialized():
            return
        sweep = HydraConfig.get().sweep
        run_folder = Path(sweep.dir) / str(sweep.subdir)
    if (run_folder / CONFIG_FILE).exists():
        before = _plain(OmegaConf.load(run_folder / CONFIG_FILE))
        # Through YAML, so that both have the form of the file: enums are names there.
        refuse_changes(run_folder, before, _plain(OmegaConf.create(OmegaConf.to_yaml(cfg))))


def resume_command() -> str:
    """Return the command that goes on with the run of the present job."""
    sweep = Path(HydraConfig.get().sweep.dir)
    is_in_runs = sweep.parent == RUNS.absolute() or "MODAL_TASK_ID" in os.environ
    run = sweep.name if is_in_runs else shlex.quote(str(sweep))
    return f"python -m rl_experiments resume {run}"


def _plain(cfg: Any) -> dict[str, Any]:
    """Return a configuration as plain values, with its interpolations unresolved."""
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "hydra"}


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE_ON_RESUME)

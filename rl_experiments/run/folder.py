"""The folder of one job: what was run, with what, and what came out."""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from environments import evaluation_seed, training_seed
from rl_experiments import distributed
from rl_experiments.config.diff import changed_settings
from rl_experiments.config.schema import CheckpointConfig, EndpointConfig
from rl_experiments.errors import UserError
from rl_experiments.paths import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    EPISODES_FILE,
    EVALUATION_FOLDER,
    METRICS_FILE,
    RUN_FILE,
    RUNS,
)
from rl_experiments.rollout.episodes import Trajectory
from rl_experiments.storage.files import append_json_lines, keep_json_lines, write_atomically

_PACKAGES = (
    *("torch", "trl", "transformers", "peft", "accelerate", "datasets"),
    *("hydra-core", "omegaconf", "wandb"),
)
_ASKED = ("base_url", "body")  # what a model behind an endpoint is
# What may differ between a run and its resumption: it does not touch what was computed.
_FREE = (
    *("resume", "trainer.max_steps", "num_examples", "logger"),
    *("evaluation.batch_size", "checks", "budget", "vllm", "memory", "fit", "policies"),
    *(f"model.{field.name}" for field in fields(EndpointConfig) if field.name not in _ASKED),
    *(f"judge.{field.name}" for field in fields(EndpointConfig) if field.name not in _ASKED),
    *(f"reward.ruler.{name}" for name in ("max_failures", "on_budget")),
    *(f"checkpoint.{field.name}" for field in fields(CheckpointConfig) if field.name != "path"),
    *(
        f"gpu.{name}"
        for name in ("type", "fallback", "cpu", "memory", "timeout", "region", "retries")
    ),
)


@dataclass(frozen=True)
class Run:
    folder: Path

    @classmethod
    def open(cls, cfg: DictConfig) -> Run:
        """Begin the run in Hydra's output folder, or go on with it when `resume` is set."""
        run = cls(Path(HydraConfig.get().runtime.output_dir))
        if not distributed.is_first():
            return run
        if run.config_file.exists():
            if not cfg.resume:
                raise UserError(
                    f"{run.folder} holds a run; add resume=true or take another name=..."
                )
            run._refuse_changes(cfg)
        # Interpolations are kept: what they stand for may be secret.
        write_atomically(run.config_file, OmegaConf.to_yaml(cfg))
        if not (run.folder / RUN_FILE).exists():
            write_atomically(run.folder / RUN_FILE, json.dumps(_record(cfg), indent=1))
        return run

    @property
    def config_file(self) -> Path:
        return self.folder / CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS_FOLDER

    @property
    def metrics(self) -> Path:
        return self.folder / METRICS_FILE

    @property
    def episodes(self) -> Path:
        return self.folder / EPISODES_FILE

    @property
    def evaluation(self) -> Path:
        return self.folder / EVALUATION_FOLDER

    def drop_records_after(self, step: int) -> None:
        """Forget what came after the checkpoint that training goes on from."""
        keep_json_lines(self.metrics, lambda record: record["step"] <= step)
        # Episodes are recorded when they are played, before the steps that learn from them.
        keep_json_lines(self.episodes, lambda record: record["step"] < step)

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        append_json_lines(self.metrics, [{"step": step, **metrics}])

    def log_episodes(self, step: int, episodes: list[Trajectory]) -> None:
        append_json_lines(self.episodes, [{"step": step, **e.to_json()} for e in episodes])

    def _refuse_changes(self, cfg: DictConfig) -> None:
        now = OmegaConf.create(OmegaConf.to_yaml(cfg))  # as the file has it: enums as names
        before = OmegaConf.load(self.config_file)
        settings = (OmegaConf.to_container(before), OmegaConf.to_container(now))
        changed = [
            key
            for key in changed_settings(*settings)
            if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
        ]
        if changed:
            raise UserError(
                f"{changed[0]} is not what it was when {self.folder} was begun; to resume give the "
                "settings of then, or take another name=... for a new run"
            )


def _record(cfg: DictConfig) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "overrides": list(HydraConfig.get().overrides.task),
        "choices": {k: v for k, v in HydraConfig.get().runtime.choices.items() if "/" not in k},
        "git": _git(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "seeds": {
            "run": cfg.seed,
            "first training seed": training_seed(cfg.seed, 0),
            "evaluation": [evaluation_seed(0), evaluation_seed(cfg.num_examples - 1)],
        },
    }


def _git() -> dict[str, Any] | None:
    """The commit of the code that runs, and whether the checkout differs from it."""
    from hydra_modal_jobs.bundle import git_state

    # In a container there is no checkout, and the launcher tells it.
    told: dict[str, Any] | None = json.loads(os.environ.get("HYDRA_JOB_SOURCE", "null"))
    return git_state(Path(__file__).parent) or told


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def resume_command() -> str:
    """The command that goes on with the run of the present job."""
    sweep = Path(HydraConfig.get().sweep.dir)
    is_named = sweep.parent == RUNS.absolute() or "MODAL_TASK_ID" in os.environ
    return f"python -m rl_experiments resume {sweep.name if is_named else shlex.quote(str(sweep))}"

"""The folder of one job: begun or gone on with, its files, and its records."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rl_experiments import distributed
from rl_experiments.checkpoints.checkpointer import exclusive_lock
from rl_experiments.errors import UserError
from rl_experiments.paths import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    EPISODES_FILE,
    EVALUATION_FOLDER,
    METRICS_FILE,
    RUN_FILE,
)
from rl_experiments.rollout.types import Trajectory
from rl_experiments.run.provenance import provenance
from rl_experiments.run.resume import check_resume
from rl_experiments.storage.files import append_json_lines, keep_json_lines, write_atomically


@dataclass(frozen=True)
class Run:
    """One execution of a job, as a folder."""

    folder: Path

    @classmethod
    @contextmanager
    def open(cls, cfg: DictConfig) -> Iterator[Run]:
        """Yield the run in Hydra's output folder: a new one, or with `resume` the one there.

        Raises a `UserError` if another process writes it, if there is one and `resume` is not set,
        or if it was begun with other settings.
        """
        run = cls(Path(HydraConfig.get().runtime.output_dir))
        if not distributed.is_first():
            yield run
            return
        with exclusive_lock(run.folder):
            run._begin(cfg)
            yield run

    def _begin(self, cfg: DictConfig) -> None:
        """Write the settings and what made the run."""
        if self.config_file.exists():
            if not cfg.resume:
                raise UserError(
                    f"{self.folder} holds a run; add resume=true or take another name=..."
                )
            check_resume(cfg, self.folder)
        # Interpolations are kept: the values that they stand for may be secret.
        write_atomically(self.config_file, OmegaConf.to_yaml(cfg))
        if not (self.folder / RUN_FILE).exists():
            write_atomically(self.folder / RUN_FILE, json.dumps(provenance(cfg), indent=1))

    @property
    def config_file(self) -> Path:
        """The file with the composed settings."""
        return self.folder / CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, each in a folder `checkpoint-{step}`."""
        return self.folder / CHECKPOINTS_FOLDER

    @property
    def metrics(self) -> Path:
        """The file with a line of metrics for each logged step."""
        return self.folder / METRICS_FILE

    @property
    def episodes(self) -> Path:
        """The file with a line for each training episode."""
        return self.folder / EPISODES_FILE

    @property
    def evaluation(self) -> Path:
        """The folder with the episodes of the evaluation."""
        return self.folder / EVALUATION_FOLDER

    def drop_records_after(self, step: int) -> None:
        """Delete the records of what came after the checkpoint that training goes on from."""
        keep_json_lines(self.metrics, lambda record: record.get("step", math.inf) <= step)
        # An episode is recorded when it is played, before the step that learns from it.
        keep_json_lines(self.episodes, lambda record: record.get("step", math.inf) < step)

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of a step."""
        append_json_lines(self.metrics, [{"step": step, **metrics}])

    def log_episodes(self, step: int, episodes: list[Trajectory]) -> None:
        """Record the training episodes played after `step` steps."""
        records = [{"step": step, **episode.to_json()} for episode in episodes]
        append_json_lines(self.episodes, records)

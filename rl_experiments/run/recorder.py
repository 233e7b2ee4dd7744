"""A run under way: its records go to its loggers, its checkpoints to its store."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rl_experiments import distributed
from rl_experiments.checkpoints import local as checkpoint
from rl_experiments.checkpoints.checkpointer import Checkpointer, saving
from rl_experiments.config.schema import Config
from rl_experiments.paths import (
    EVALUATION_FILE,
    LOGGER_IDS_FILE,
    RECORDS_FOLDER,
    RUN_FILE,
    checkpoint_name,
)
from rl_experiments.rollout.episodes import Trajectory
from rl_experiments.run.folder import Run
from rl_experiments.storage.files import read_json_lines
from rl_experiments.terminal.progress import Progress
from rl_experiments.tracking.loggers import Job, Loggers


@dataclass(frozen=True)
class RunRecorder(Run):
    """What training writes to, and what `trainer.target` is given."""

    loggers: Loggers
    saving: Checkpointer

    def rewind(self) -> Path | None:
        """The checkpoint to go on from, with the records after it dropped; None to start afresh."""
        found = distributed.broadcast_from_first(self._rewind() if distributed.is_first() else None)
        self._begin()
        return found

    def seal(self, step: int) -> None:
        """Make `checkpoints/checkpoint-{step}`, whose files are written, count from now on."""
        if not distributed.is_first():
            return
        records = self.checkpoints / checkpoint_name(step) / RECORDS_FOLDER
        records.mkdir(parents=True, exist_ok=True)
        for name in self._files():
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, records / name)
        logged = [record for record in read_json_lines(self.metrics) if record["step"] == step]
        metrics = {k: float(v) for line in logged for k, v in line.items() if _is_number(v)}
        self.saving.seal(step, metrics)

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        if distributed.is_first():
            self._begin()
            super().log_metrics(step, metrics)
            self.loggers.log(step, metrics)

    def log_episodes(self, step: int, episodes: list[Trajectory]) -> None:
        if distributed.is_first():
            self._begin()
            super().log_episodes(step, episodes)
            self.loggers.hold([{"step": step, **episode.to_json()} for episode in episodes])

    def log_results(self) -> None:
        """What the run's folder holds at its end: the evaluation and the figures."""
        if distributed.is_first():
            self._begin()
            steps = [record["step"] for record in read_json_lines(self.metrics)]
            file = self.folder / EVALUATION_FILE
            evaluation = json.loads(file.read_text()) if file.exists() else {"policies": []}
            pictures = sorted(self.folder.glob("*.png"))
            self.loggers.results(max(steps, default=0), evaluation, pictures)

    def _rewind(self) -> Path | None:
        found = self.saving.newest()
        if found and not self.metrics.exists():  # fetched, onto a machine that never ran this
            for name in (self.metrics.name, LOGGER_IDS_FILE):
                if (found / RECORDS_FOLDER / name).exists():
                    shutil.copyfile(found / RECORDS_FOLDER / name, self.folder / name)
        self.drop_records_after(checkpoint.step_of(found) if found else 0)
        return found

    def _files(self) -> tuple[str, ...]:
        return self.config_file.name, RUN_FILE, self.metrics.name, LOGGER_IDS_FILE

    def _begin(self) -> None:
        if distributed.is_first():
            self.loggers.begin(
                list(read_json_lines(self.metrics)), list(read_json_lines(self.episodes))
            )


@contextmanager
def live(run: Run, cfg: DictConfig, config: Config, progress: Progress) -> Iterator[RunRecorder]:
    """The run with its store, and with its loggers, which are opened once it trains."""
    composed = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    assert isinstance(composed, dict)
    told = {str(key): value for key, value in composed.items() if key != "hydra"}
    say = partial(progress.console.print, soft_wrap=True, markup=False, highlight=False)
    loggers = Loggers(Job(run.folder, config.trainer.max_steps, config.logger, told, say))
    failed = True
    with saving(run.folder, config, say) as saved:
        try:
            yield RunRecorder(run.folder, loggers, saved)
            failed = False
        finally:
            loggers.close(failed=failed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

"""A run in progress: its records go to its loggers, its checkpoints to its store."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rl_experiments import distributed
from rl_experiments.checkpoints.checkpointer import Checkpointer, open_checkpointer
from rl_experiments.checkpoints.local import step_of
from rl_experiments.config.schema import Config
from rl_experiments.paths import (
    EVALUATION_FILE,
    LOGGER_IDS_FILE,
    RECORDS_FOLDER,
    RUN_FILE,
    checkpoint_name,
)
from rl_experiments.rollout.types import Trajectory
from rl_experiments.run.folder import Run
from rl_experiments.storage.files import read_json_lines, read_json_object
from rl_experiments.terminal.progress import Progress
from rl_experiments.tracking.base import LoggedRun
from rl_experiments.tracking.loggers import Loggers


@dataclass(frozen=True)
class RunRecorder(Run):
    """The run that training writes to; a function named by `trainer.target` is given it.

    `rewind`, `log_metrics` and `seal` are the interface of such functions:

    >>> def train(config, run):
    ...     checkpoint = run.rewind()  # None at the start
    ...     ...
    ...     run.log_metrics(8, {"reward": 0.5})
    ...     write_files_into(run.checkpoints / "checkpoint-8")
    ...     run.seal(8)

    With several processes, all call them; the first one writes.
    """

    loggers: Loggers
    checkpointer: Checkpointer

    def rewind(self) -> Path | None:
        """Return the checkpoint to go on from; None to start afresh.

        It is verified. Records after it are dropped, and the loggers are opened.
        """
        checkpoint = distributed.broadcast_from_first(
            self._prepare_resume() if distributed.is_first() else None
        )
        self._open_loggers()
        return checkpoint

    def seal(self, step: int) -> None:
        """Mark `checkpoints/checkpoint-{step}`, whose files are written, as complete.

        It gets copies of the run's records, is uploaded, and makes old checkpoints superfluous.
        """
        if not distributed.is_first():
            return
        records = self.checkpoints / checkpoint_name(step) / RECORDS_FOLDER
        records.mkdir(parents=True, exist_ok=True)
        for name in (self.config_file.name, RUN_FILE, self.metrics.name, LOGGER_IDS_FILE):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, records / name)
        lines = [
            record for record in read_json_lines(self.metrics, "step") if record["step"] == step
        ]
        metrics = {k: float(v) for line in lines for k, v in line.items() if _is_finite(v)}
        self.checkpointer.finalize(step, metrics)

    def log_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of a step, and send them to the loggers."""
        if distributed.is_first():
            self._open_loggers()
            super().log_metrics(step, metrics)
            self.loggers.log(step, metrics)

    def log_episodes(self, step: int, episodes: list[Trajectory]) -> None:
        """Record the training episodes played after `step` steps, and hand some to the loggers."""
        if distributed.is_first():
            self._open_loggers()
            super().log_episodes(step, episodes)
            self.loggers.add_episodes([{"step": step, **episode.to_json()} for episode in episodes])

    def log_results(self) -> None:
        """Send what the run folder holds at the end to the loggers: evaluation and figures."""
        if distributed.is_first():
            self._open_loggers()
            steps = [record["step"] for record in read_json_lines(self.metrics, "step")]
            file = self.folder / EVALUATION_FILE
            evaluation: dict[str, Any] = {"policies": []}
            if file.exists():
                remedy = "delete it; the same command with resume=true writes it anew"
                evaluation = read_json_object(file, "policies", remedy=remedy)
            pictures = sorted(self.folder.glob("*.png"))
            self.loggers.log_results(max(steps, default=0), evaluation, pictures)

    def _prepare_resume(self) -> Path | None:
        """Find the checkpoint to go on from, and set the records back to it."""
        checkpoint = self.checkpointer.resume_point()
        if checkpoint and not self.metrics.exists():  # downloaded: another machine trained before
            for name in (self.metrics.name, LOGGER_IDS_FILE):
                if (checkpoint / RECORDS_FOLDER / name).exists():
                    shutil.copyfile(checkpoint / RECORDS_FOLDER / name, self.folder / name)
        self.drop_records_after(step_of(checkpoint) if checkpoint else 0)
        return checkpoint

    def _open_loggers(self) -> None:
        """Open the loggers, unless they are open; they get the records that the run has."""
        if distributed.is_first():
            self.loggers.open(
                list(read_json_lines(self.metrics, "step")),
                list(read_json_lines(self.episodes, "step")),
            )


@contextmanager
def open_recorder(
    run: Run, cfg: DictConfig, config: Config, progress: Progress
) -> Iterator[RunRecorder]:
    """Yield the run with its checkpoints and its loggers, which are opened once it trains.

    Raises a `UserError` if its store cannot be used.
    """
    composed = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    assert isinstance(composed, dict)
    settings = {str(key): value for key, value in composed.items() if key != "hydra"}
    say = progress.print
    logged_run = LoggedRun(run.folder, config.trainer.max_steps, config.logger, settings, say)
    loggers = Loggers(logged_run)
    failed = True
    with open_checkpointer(run.folder, config, say) as checkpointer:
        try:
            yield RunRecorder(run.folder, loggers, checkpointer)
            failed = False
        finally:
            loggers.close(failed=failed)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

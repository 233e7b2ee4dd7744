"""The loggers of a run, which write beside the run's files and never stop the run.

The files are the truth. A logger is opened with all records in them and is sent those that it
lacks: what a killed attempt had sent, or had not sent yet, is there once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rl_experiments.config.schema import LoggerConfig
from rl_experiments.errors import UserError, did_you_mean, one_line
from rl_experiments.tracking.base import JsonDict, LoggedRun, Logger
from rl_experiments.tracking.tensorboard_logger import TensorBoardLogger
from rl_experiments.tracking.trackio_logger import TrackioLogger
from rl_experiments.tracking.wandb_logger import WandbLogger

# By the name of the package that each needs, which is imported when the logger is opened.
_LOGGERS: dict[str, Callable[[LoggedRun], Logger]] = {
    "wandb": WandbLogger,
    "trackio": TrackioLogger,
    "tensorboard": TensorBoardLogger,
}


def check_known(settings: LoggerConfig) -> None:
    """Raise a `UserError` for a logger that there is not."""
    for name in settings.report_to:
        if name not in _LOGGERS:
            raise UserError(
                f"logger.report_to: no logger is called {name}{did_you_mean(name, _LOGGERS)}"
            )


def check_installed(settings: LoggerConfig) -> None:
    """Raise a `UserError` for a logger that is unknown or not installed."""
    check_known(settings)
    for name in settings.report_to:
        if find_spec(name) is None:
            remedy = f"pip install {name}"
            if "MODAL_TASK_ID" in os.environ:
                remedy = f"hydra.launcher.image.pip=[{name}]"
            raise UserError(f"logger={name}: the package is not installed; {remedy}")


class Loggers:
    """All loggers of one run; one that fails is reported to the user and left out from then on."""

    def __init__(self, run: LoggedRun) -> None:
        self.run = run
        self._loggers: dict[str, Logger] | None = None  # None until `open`
        self._pending_episodes: list[JsonDict] = []  # from which no step has learned yet

    def open(self, metrics: list[JsonDict], episodes: list[JsonDict]) -> None:
        """Open each logger, and send it those of the run's records that it lacks.

        Does nothing where the loggers are open.
        """
        if self._loggers is not None:
            return
        self._loggers = {}
        for name in self.run.settings.report_to:
            with self._survive(name):
                logger = self._loggers[name] = _LOGGERS[name](self.run)
                previous_step = 0
                for record in metrics:
                    step = record["step"]
                    if step >= logger.first_step:
                        values = {key: value for key, value in record.items() if key != "step"}
                        played = [e for e in episodes if previous_step <= e["step"] < step]
                        logger.log(step, values, played)
                    previous_step = step
        last_step = metrics[-1]["step"] if metrics else 0
        self._pending_episodes = [e for e in episodes if e["step"] >= last_step]

    def log(self, step: int, metrics: JsonDict) -> None:
        """Send the metrics of a step with the episodes added since the step before."""
        played, self._pending_episodes = self._pending_episodes, []

        def send(logger: Logger) -> None:
            if step >= logger.first_step:
                logger.log(step, metrics, played)

        self._for_each(send)

    def add_episodes(self, episodes: list[JsonDict]) -> None:
        """Keep episodes, which are sent with the metrics of the step that learns from them."""
        if self._loggers:
            self._pending_episodes += episodes

    def log_results(self, step: int, evaluation: JsonDict, pictures: list[Path]) -> None:
        """Send the evaluation, as evaluation.json has it, and the pictures."""
        self._for_each(lambda logger: logger.log_results(step, evaluation, pictures))

    def close(self, *, failed: bool) -> None:
        """Send what is left; `failed` marks the run as failed at the services."""
        self._for_each(lambda logger: logger.close(failed=failed))

    def _for_each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list((self._loggers or {}).items()):
            with self._survive(name):
                act(logger)

    @contextmanager
    def _survive(self, name: str) -> Iterator[None]:
        """Go on without a logger that raises."""
        try:
            yield
        except Exception as error:
            reason = one_line(str(error))[:200] or type(error).__name__
            self.run.say(f"Warning: {name} failed ({reason}); the run goes on without it")
            (self._loggers or {}).pop(name, None)

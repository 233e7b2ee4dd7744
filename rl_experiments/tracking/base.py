"""What a logger is, and what it knows of the run that it logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rl_experiments.config.schema import LoggerConfig
from rl_experiments.paths import LOGGER_IDS_FILE
from rl_experiments.storage.files import read_json_object, write_atomically

JsonDict = dict[str, Any]
_FORMAT_VERSION = 1  # of loggers.json


@dataclass(frozen=True)
class LoggedRun:
    """The run that loggers log.

    `config` is the composed configuration with its interpolations kept, for what they stand for may
    be secret. `say` prints a line for the user.
    """

    folder: Path
    max_steps: int
    settings: LoggerConfig
    config: JsonDict
    say: Callable[[str], None]

    @property
    def sweep(self) -> str:
        """The name that all jobs of a sweep share."""
        return self.folder.parent.name

    @property
    def name(self) -> str:
        """The name of the run at a service: the sweep's, with the number of the job."""
        return f"{self.sweep}-{self.folder.name}"

    def service_id(self, service: str) -> str | None:
        """Return the id under which a service knows the run, if an earlier attempt kept one."""
        service_id: str | None = self._service_ids().get(service)
        return service_id

    def keep_service_id(self, service: str, service_id: str) -> None:
        """Keep the id under which a service knows the run, for later attempts."""
        ids = {"format_version": _FORMAT_VERSION, **self._service_ids(), service: service_id}
        write_atomically(self.folder / LOGGER_IDS_FILE, json.dumps(ids, indent=1))

    def _service_ids(self) -> JsonDict:
        file = self.folder / LOGGER_IDS_FILE
        if not file.exists():
            return {}
        return read_json_object(file, remedy="delete it, and the services begin new runs")


class Logger(Protocol):
    """One service that is given a run's metrics, episodes and results.

    `first_step` is the first step to send; earlier ones are already on the server.
    """

    first_step: int

    def log(self, step: int, metrics: JsonDict, episodes: list[JsonDict]) -> None:
        """Send the metrics of a step and the episodes that the step learned from."""

    def log_results(self, step: int, evaluation: JsonDict, pictures: list[Path]) -> None:
        """Send the evaluation, as evaluation.json has it, and the pictures."""

    def close(self, *, failed: bool) -> None:
        """Send what is left, and end the service's run."""

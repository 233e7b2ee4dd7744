"""Trackio: a local database, or a Hugging Face Space that the user's variables name."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path

from rl_experiments.paths import TRACKIO_FOLDER
from rl_experiments.tracking import tables
from rl_experiments.tracking.base import JsonDict, LoggedRun


class TrackioLogger:
    """Logs to a Trackio run, which each attempt begins anew.

    The run of an earlier attempt is deleted by its id, and all steps are sent again. Trackio's
    `resume` finds a run by its name alone, which other runs may share, and appends a second row for
    a step that is done again.
    """

    first_step = 0

    def __init__(self, run: LoggedRun) -> None:
        if "MODAL_TASK_ID" in os.environ:  # Trackio's default folder goes with the container
            os.environ.setdefault("TRACKIO_DIR", str(run.folder / TRACKIO_FOLDER))
        self._trackio = import_module("trackio")
        project = run.settings.project
        self._delete(project, run.service_id("trackio"))
        with _without_output():
            self._run = self._trackio.init(
                project, name=run.name, group=run.sweep, config=run.config, embed=False
            )
        run.keep_service_id("trackio", self._run.id)

    def log(self, step: int, metrics: JsonDict, episodes: list[JsonDict]) -> None:
        """Log the metrics of a step and a table of its episodes."""
        row = dict(metrics)
        if episodes:
            columns = tables.EPISODE_COLUMNS
            rows = [dict(zip(columns, tables.episode_row(e), strict=True)) for e in episodes]
            row["episodes"] = self._trackio.Table(data=rows)
        self._run.log(row, step=step)

    def log_results(self, step: int, evaluation: JsonDict, pictures: list[Path]) -> None:
        """Log the evaluation and the pictures at the last step."""
        row: JsonDict = tables.evaluation_metrics(evaluation)
        row |= {path.stem: self._trackio.Image(str(path)) for path in pictures}
        self._run.log(row, step=step)

    def close(self, *, failed: bool) -> None:
        """End the run, which writes what is left."""
        with _without_output():
            self._trackio.finish()

    def _delete(self, project: str, run_id: str | None) -> None:
        with suppress(ValueError), _without_output():  # ValueError: there is no such project yet
            for run in self._trackio.Api().runs(project):
                if run.id == run_id:
                    run.delete()


@contextmanager
def _without_output() -> Iterator[None]:
    """Keep the lines that Trackio prints out of the terminal."""
    with redirect_stdout(io.StringIO()):
        yield

"""Weights & Biases: online where its server answers, else offline for `wandb sync`."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from html import escape
from pathlib import Path
from typing import Any

from rl_experiments.errors import one_line
from rl_experiments.network import why_unreachable
from rl_experiments.paths import WANDB_FOLDER
from rl_experiments.tracking import tables
from rl_experiments.tracking.base import JsonDict, LoggedRun

_MAX_EPISODE_TABLES = 100  # a run; each is a file of its own on the server
_PROBE_TIMEOUT_SECONDS = 5  # for the server to answer at all
_INIT_TIMEOUT_SECONDS = 20  # for W&B to begin the run
_FINISH_TIMEOUT_SECONDS = 30  # for W&B to send what is left


class WandbLogger:
    """Logs to a W&B run, in which every attempt at the run goes on."""

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        self._wandb, self._logged_run = wandb, run
        known_id = os.environ.get("WANDB_RUN_ID") or run.service_id("wandb")
        settings: JsonDict = {
            "project": run.settings.project,
            "entity": run.settings.entity,
            "run_tags": tuple(run.settings.tags),
            "run_group": run.sweep,
            "run_name": run.name,
            "run_id": known_id or secrets.token_hex(4),
            "resume": "allow" if known_id else None,
            "root_dir": str(run.folder),
            "silent": True,
            "console": "off",
            "init_timeout": _INIT_TIMEOUT_SECONDS,
            "finish_timeout": _FINISH_TIMEOUT_SECONDS,
            "finish_timeout_raises": True,
        }
        run.keep_service_id("wandb", settings["run_id"])
        # WANDB_* variables set by the user take precedence.
        settings = {k: v for k, v in settings.items() if _variable(k) not in os.environ}
        self._run = self._open(settings)
        self.first_step: int = self._run.step

    def log(self, step: int, metrics: JsonDict, episodes: list[JsonDict]) -> None:
        """Log the metrics of a step, and a table of its episodes about 100 times a run."""
        row = dict(metrics)
        steps = (step, *(episode["step"] for episode in episodes))
        intervals = [each * _MAX_EPISODE_TABLES // self._logged_run.max_steps for each in steps]
        if intervals[0] > min(intervals):  # the step is the first of a new interval
            row["episodes"] = self._table(
                tables.EPISODE_COLUMNS, list(map(tables.episode_row, episodes))
            )
        self._run.log(row, step=step, commit=True)

    def log_results(self, step: int, evaluation: JsonDict, pictures: list[Path]) -> None:
        """Add the evaluation and the pictures to the run's summary.

        In the history they would take a step that a longer run may come to.
        """
        summary: JsonDict = tables.evaluation_metrics(evaluation)
        summary["evaluation"] = self._table(
            tables.EVALUATION_COLUMNS, tables.evaluation_rows(evaluation)
        )
        summary |= {path.stem: self._wandb.Image(str(path)) for path in pictures}
        self._run.summary.update(summary)

    def close(self, *, failed: bool) -> None:
        """Send what is left; where that fails, tell the user the command that sends it."""
        sync_folder = Path(self._run.settings.sync_dir)
        command = f"wandb sync {shlex.quote(str(sync_folder))}"
        say = self._logged_run.say
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError:
            say(f"W&B: not all was sent; send it with: {command} --include-online")
            return
        wandb_folder = self._logged_run.folder / WANDB_FOLDER
        for folder in wandb_folder.glob(f"offline-run-*-{self._run.id}"):
            if folder != sync_folder:  # of a killed attempt; this one holds all that it held
                shutil.rmtree(folder, ignore_errors=True)
        if self._run.offline and sync_folder.exists():
            say(f"W&B: send the run with: {command}")

    def _open(self, settings: JsonDict) -> Any:
        """Return a run on W&B's server or, where that fails, one in a folder for later."""
        wandb, say = self._wandb, self._logged_run.say
        quiet = {k: v for k, v in settings.items() if k in ("silent", "console")}
        mode = wandb.setup(wandb.Settings(**quiet)).settings.mode
        if mode in ("offline", "dryrun", "disabled"):
            return self._open_offline(settings, mode)
        try:
            reason = self._reason_to_stay_offline()
            if reason is None:
                config = self._logged_run.config
                run = wandb.init(config=config, settings=wandb.Settings(**settings))
                say(f"W&B: {run.url}")
                return run
        except Exception as error:
            reason = one_line(str(error))[:200]
            # Without this, the id counts as in use by the run that could not be begun.
            wandb.teardown()
            wandb.setup(wandb.Settings(**quiet))
        say(f"W&B: offline ({reason})")
        return self._open_offline(settings, "offline")

    def _open_offline(self, settings: JsonDict, mode: str) -> Any:
        # Without `resume`, what `wandb sync` sends later replaces what the server has instead of
        # being added to it. That is right: the offline run will hold every step.
        settings = {**settings, "mode": mode, "resume": None}
        return self._wandb.init(
            config=self._logged_run.config, settings=self._wandb.Settings(**settings)
        )

    def _reason_to_stay_offline(self) -> str | None:
        """Return why W&B's server is of no use; its client would try for minutes to find out."""
        if not self._wandb.login(verify=False, prompt=False):
            return "no API key: set WANDB_API_KEY, or run `wandb login`"
        server = self._wandb.setup().settings.base_url
        reason = why_unreachable(server, timeout_seconds=_PROBE_TIMEOUT_SECONDS)
        return None if reason is None else f"{server} does not answer: {one_line(reason)}"

    def _table(self, columns: list[str], rows: list[list[Any]]) -> Any:
        """Return a table as an HTML page.

        W&B's own tables are artifacts: they need a server that answers while they are logged and
        synced, and a server that answers them wrongly ends W&B's process, and with it the logger.
        """
        header = "".join(f"<th>{escape(name)}</th>" for name in columns)
        lines = [
            "".join(f"<td><pre>{escape(tables.cell_text(cell))}</pre></td>" for cell in row)
            for row in rows
        ]
        body = "".join(f"<tr>{line}</tr>" for line in (header, *lines))
        return self._wandb.Html(f"<table border=1>{body}</table>", data_is_not_path=True)


def _variable(setting: str) -> str:
    """Return the name of the environment variable of one of W&B's settings."""
    special = {"run_name": "NAME", "run_tags": "TAGS", "root_dir": "DIR"}
    return f"WANDB_{special.get(setting, setting.upper())}"

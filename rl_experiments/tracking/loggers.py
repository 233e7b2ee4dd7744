"""Weights & Biases, Trackio and TensorBoard beside a run's files, which they may never stop.

The files are the truth: a logger is begun with all that they hold and it lacks, so that what a
killed attempt had told it, or had not sent yet, is there once.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from rl_experiments.config.schema import LoggerConfig
from rl_experiments.errors import UserError, did_you_mean, one_line
from rl_experiments.paths import LOGGER_IDS_FILE, TENSORBOARD_FOLDER, TRACKIO_FOLDER, WANDB_FOLDER
from rl_experiments.storage.files import write_atomically

Record = dict[str, Any]

_TABLES = 100  # of episodes that a run sends at most: each is a file of its own
_SECONDS = {"probe": 5, "init": 20, "finish": 30}  # to wait for W&B's server at most


@dataclass(frozen=True)
class Job:
    """What a logger is told of the run at its beginning."""

    folder: Path
    steps: int
    settings: LoggerConfig
    config: Record  # as composed, interpolations kept: what they stand for may be secret
    say: Callable[[str], None]

    @property
    def sweep(self) -> str:
        return self.folder.parent.name

    @property
    def name(self) -> str:
        return f"{self.sweep}-{self.folder.name}"


class Logger(Protocol):
    """One service."""

    first_step: int  # what came before, it has

    def log(self, step: int, metrics: Record, episodes: list[Record]) -> None:
        """The metrics of a step and the episodes that it learned from."""

    def results(self, step: int, evaluation: Record, pictures: list[Path]) -> None:
        """What came out: the evaluation as `evaluation.json` has it, and the figures."""

    def close(self, *, failed: bool) -> None: ...


def check(settings: LoggerConfig) -> None:
    """Refuse a logger that is unknown or not installed."""
    for name in settings.report_to:
        if name not in _LOGGERS:
            raise UserError(
                f"logger.report_to: no logger is called {name}{did_you_mean(name, _LOGGERS)}"
            )
        if find_spec(name) is None:
            remedy = f"pip install {name}"
            if "MODAL_TASK_ID" in os.environ:
                remedy = f"hydra.launcher.image.pip=[{name}]"
            raise UserError(f"logger={name}: the package is not installed; {remedy}")


class Loggers:
    """Those of one run; one that fails is named and left out from then on."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._loggers: dict[str, Logger] | None = None
        self._episodes: list[Record] = []  # which no step has learned from yet

    def begin(self, metrics: list[Record], episodes: list[Record]) -> None:
        """Open each logger, and tell it those records that it lacks."""
        if self._loggers is not None:
            return
        self._loggers = {}
        for name in self.job.settings.report_to:
            with self._guard(name):
                logger = self._loggers[name] = _LOGGERS[name](self.job)
                before = 0
                for record in metrics:
                    step = record["step"]
                    if step >= logger.first_step:
                        played = [e for e in episodes if before <= e["step"] < step]
                        logger.log(step, _without_step(record), played)
                    before = step
        last = metrics[-1]["step"] if metrics else 0
        self._episodes = [e for e in episodes if e["step"] >= last]

    def log(self, step: int, metrics: Record) -> None:
        played, self._episodes = self._episodes, []

        def tell(logger: Logger) -> None:
            if step >= logger.first_step:
                logger.log(step, metrics, played)

        self._each(tell)

    def hold(self, episodes: list[Record]) -> None:
        """Episodes go with the metrics of the step that learns from them."""
        if self._loggers:
            self._episodes += episodes

    def results(self, step: int, evaluation: Record, pictures: list[Path]) -> None:
        self._each(lambda logger: logger.results(step, evaluation, pictures))

    def close(self, *, failed: bool) -> None:
        self._each(lambda logger: logger.close(failed=failed))

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list((self._loggers or {}).items()):
            with self._guard(name):
                act(logger)

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            said = one_line(str(error))[:200] or type(error).__name__
            self.job.say(f"Warning: {name} failed ({said}); the run goes on without it")
            (self._loggers or {}).pop(name, None)


class _Wandb:
    def __init__(self, job: Job) -> None:
        import wandb

        self._wandb, self._job = wandb, job
        known = os.environ.get("WANDB_RUN_ID") or _ids(job).get("wandb")
        settings: Record = {
            "project": job.settings.project,
            "entity": job.settings.entity,
            "run_tags": tuple(job.settings.tags),
            "run_group": job.sweep,
            "run_name": job.name,
            "run_id": known or secrets.token_hex(4),
            "resume": "allow" if known else None,
            "root_dir": str(job.folder),
            "silent": True,
            "console": "off",
            "init_timeout": _SECONDS["init"],
            "finish_timeout": _SECONDS["finish"],
            "finish_timeout_raises": True,
        }
        _keep_id(job, "wandb", settings["run_id"])
        # What the user's variables say holds.
        settings = {k: v for k, v in settings.items() if _variable(k) not in os.environ}
        self._run = self._open(settings)
        self.first_step: int = self._run.step

    def _open(self, settings: Record) -> Any:
        """A run on W&B's server if that can be had, else one in a folder for later."""
        wandb, say = self._wandb, self._job.say
        quiet = {k: v for k, v in settings.items() if k in ("silent", "console")}
        mode = wandb.setup(wandb.Settings(**quiet)).settings.mode
        if mode in ("offline", "dryrun", "disabled"):
            return self._offline(settings, mode)
        try:
            reason = self._unreachable()
            if reason is None:
                run = wandb.init(config=self._job.config, settings=wandb.Settings(**settings))
                say(f"W&B: {run.url}")
                return run
        except Exception as error:
            reason = one_line(str(error))[:200]
            # Else the id would be in use by the run that could not be begun.
            wandb.teardown()
            wandb.setup(wandb.Settings(**quiet))
        say(f"W&B: offline ({reason})")
        return self._offline(settings, "offline")

    def _offline(self, settings: Record, mode: str) -> Any:
        # Without `resume`, what is sent later takes the place of what the server has, instead of
        # being added to it: this run will hold every step.
        settings = {**settings, "mode": mode, "resume": None}
        return self._wandb.init(config=self._job.config, settings=self._wandb.Settings(**settings))

    def _unreachable(self) -> str | None:
        """Why there is no use in asking W&B's server, whose client would try for minutes."""
        if not self._wandb.login(verify=False, prompt=False):
            return "no API key: set WANDB_API_KEY, or `wandb login`"
        import httpx

        server = self._wandb.setup().settings.base_url
        try:
            httpx.head(server, timeout=_SECONDS["probe"])
        except httpx.HTTPError as error:
            return f"{server} does not answer: {one_line(str(error)) or type(error).__name__}"
        return None

    def log(self, step: int, metrics: Record, episodes: list[Record]) -> None:
        row = dict(metrics)
        marks = [at * _TABLES // self._job.steps for at in (step, *(e["step"] for e in episodes))]
        if marks[0] > min(marks):
            row["episodes"] = self._table(_COLUMNS, list(map(_cells, episodes)))
        self._run.log(row, step=step, commit=True)

    def results(self, step: int, evaluation: Record, pictures: list[Path]) -> None:
        # Not in the history, where they would take a step that a longer run may come to.
        summary: Record = _numbers(evaluation)
        summary["evaluation"] = self._table(_RESULTS, _table(evaluation))
        summary |= {path.stem: self._wandb.Image(str(path)) for path in pictures}
        self._run.summary.update(summary)

    def _table(self, columns: list[str], rows: list[list[Any]]) -> Any:
        """As a page: W&B's own tables ask the server, for minutes where it is gone."""
        lines = ["".join(f"<td><pre>{escape(_text(cell))}</pre></td>" for cell in r) for r in rows]
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        page = f"<table border=1>{''.join(f'<tr>{line}</tr>' for line in (head, *lines))}</table>"
        return self._wandb.Html(page, data_is_not_path=True)

    def close(self, *, failed: bool) -> None:
        here = Path(self._run.settings.sync_dir)
        command = f"wandb sync {shlex.quote(str(here))}"
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError:
            self._job.say(f"W&B: not all was sent; send it with: {command} --include-online")
            return
        for before in (self._job.folder / WANDB_FOLDER).glob(f"offline-run-*-{self._run.id}"):
            if before != here:  # of a killed attempt; this one holds all that it held
                shutil.rmtree(before, ignore_errors=True)
        if self._run.offline and here.exists():
            self._job.say(f"W&B: send the run with: {command}")


class _Trackio:
    first_step = 0

    def __init__(self, job: Job) -> None:
        if "MODAL_TASK_ID" in os.environ:  # its own place would go with the container
            os.environ.setdefault("TRACKIO_DIR", str(job.folder / TRACKIO_FOLDER))
        self._trackio = trackio = import_module("trackio")
        before, project = _ids(job).get("trackio"), job.settings.project
        with suppress(ValueError), _silence():  # no such project yet
            for run in trackio.Api().runs(project):
                if run.id == before:
                    run.delete()
        with _silence():
            self._run = trackio.init(
                project, name=job.name, group=job.sweep, config=job.config, embed=False
            )
        _keep_id(job, "trackio", self._run.id)

    def log(self, step: int, metrics: Record, episodes: list[Record]) -> None:
        row = dict(metrics)
        if episodes:
            data = [dict(zip(_COLUMNS, _cells(e), strict=True)) for e in episodes]
            row["episodes"] = self._trackio.Table(data=data)
        self._run.log(row, step=step)

    def results(self, step: int, evaluation: Record, pictures: list[Path]) -> None:
        row: Record = _numbers(evaluation)
        row |= {path.stem: self._trackio.Image(str(path)) for path in pictures}
        self._run.log(row, step=step)

    def close(self, *, failed: bool) -> None:
        with _silence():
            self._trackio.finish()


class _TensorBoard:
    first_step = 0

    def __init__(self, job: Job) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = job.folder / TENSORBOARD_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        writer: Any = SummaryWriter  # untyped
        self._writer = writer(str(folder))
        self._writer.add_text("config", _code(OmegaConf.to_yaml(OmegaConf.create(job.config))))

    def log(self, step: int, metrics: Record, episodes: list[Record]) -> None:
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        for episode in episodes[:1]:
            self._writer.add_text("episode", _code(_cells(episode)[-1]), step)
        self._writer.flush()

    def results(self, step: int, evaluation: Record, pictures: list[Path]) -> None:
        from matplotlib.image import imread

        for name, value in _numbers(evaluation).items():
            self._writer.add_scalar(name, value, step)
        rows = [_RESULTS, ["---"] * len(_RESULTS), *_table(evaluation)]
        lines = [f"| {' | '.join(map(_text, row))} |" for row in rows]
        self._writer.add_text("evaluation", "\n".join(lines), step)
        for path in pictures:
            self._writer.add_image(path.stem, imread(path), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self._writer.close()


_LOGGERS: dict[str, Callable[[Job], Logger]] = {
    "wandb": _Wandb,
    "trackio": _Trackio,
    "tensorboard": _TensorBoard,
}

_JUDGED = ("independent_reward", "ruler_score")  # where a judge rewards
_COLUMNS = ["step", "seed", "member", "end", "reward", *_JUDGED, "turns", "text"]
_RESULTS = [
    *("policy", "n", "win rate", "win rate low", "win rate high"),
    *("reward", "reward low", "reward high"),
]


def _cells(episode: Record) -> list[Any]:
    """An episode as a row of a table."""
    turns = [f"{turn['observation']}\n> {turn['reply']}" for turn in episode["turns"]]
    known = [episode[name] for name in _COLUMNS[:5]]
    judged = [episode.get(name) for name in _JUDGED]
    return [*known[:3], str(known[3]), known[4], *judged, len(turns), "\n\n".join(turns)]


def _table(evaluation: Record) -> list[list[Any]]:
    """The evaluation, a policy a row."""
    nothing = {"value": None, "low": None, "high": None}
    return [
        [policy["policy"], policy["n"]]
        + [(policy[key] or nothing)[name] for key in ("win_rate", "reward") for name in nothing]
        for policy in evaluation["policies"]
    ]


def _numbers(evaluation: Record) -> dict[str, float]:
    """The evaluation under names such as `evaluation/after/win_rate`, `.../win_rate/low`."""
    parts = {policy["policy"]: policy for policy in evaluation["policies"]}
    parts |= {"gain": evaluation["after - before"]} if "after - before" in evaluation else {}
    found = {}
    for part, result in parts.items():
        for key in ("win_rate", "reward"):
            for name, value in (result[key] or {}).items():
                suffix = "" if name == "value" else f"/{name}"
                found[f"evaluation/{part}/{key}{suffix}"] = value
    return found


def _text(cell: Any) -> str:
    return "-" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _code(text: str) -> str:
    """Markdown that shows the text as it stands."""
    return f"```\n{text}\n```"


def _variable(setting: str) -> str:
    """The environment variable of one of W&B's settings."""
    special = {"run_name": "NAME", "run_tags": "TAGS", "root_dir": "DIR"}
    return f"WANDB_{special.get(setting, setting.upper())}"


def _without_step(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "step"}


def _ids(job: Job) -> dict[str, str]:
    file = job.folder / LOGGER_IDS_FILE
    found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _keep_id(job: Job, name: str, value: str) -> None:
    write_atomically(job.folder / LOGGER_IDS_FILE, json.dumps({**_ids(job), name: value}, indent=1))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep a library's chatter out of the terminal."""
    with redirect_stdout(io.StringIO()):
        yield

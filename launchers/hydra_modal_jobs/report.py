"""What is printed when jobs have ended: the table of results, and a line for each failure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hydra_modal_jobs.follow.screen import Row, format_value
from hydra_modal_jobs.jobs.job import Job, gpu_label, labels
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.manifest import run_name
from hydra_modal_jobs.paths import ERROR_FILE
from hydra_modal_jobs.plan import duration
from hydra_modal_jobs.tables import plain_table
from hydra_modal_jobs.text import printable

_STATE_STYLES = {"failed": "red", "done": "green"}


def rows_of(jobs: Sequence[Job]) -> dict[int, Row]:
    """Return a row of the screen for each job, by number."""
    names = labels(jobs)
    return {job.num: Row(job.num, names[job.num], gpu_label(job)) for job in jobs}


def print_results(console: Console, jobs: Sequence[Job], results: Mapping[int, JobResult]) -> None:
    """Print the table of those jobs that have a result, labelled apart from all others."""
    rows = rows_of(jobs)
    ended = [(rows[job.num], results[job.num]) for job in jobs if job.num in results]
    console.print(results_table(ended, metric=jobs[0].settings.metric), highlight=False)


def print_failures(
    console: Console, jobs: Sequence[Job], results: Mapping[int, JobResult]
) -> list[Job]:
    """Print a line, however long, for each job that did not finish; return these jobs."""
    failed = [job for job in jobs if not results[job.num].is_done]
    for job in failed:
        line = f"[{job.num}] {failure_line(job, results[job.num])}"
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    return failed


def failure_line(job: Job, result: JobResult) -> str:
    """Return why a job did not finish, what to change, and where its traceback is."""
    if result.failure is not None and result.state == "failed":
        hint = result.failure.hint(dict(job.settings.hints))
        line = result.failure.line + (f"; {with_own_names(hint, [job])}" if hint else "")
        trace = job.folder / ERROR_FILE
        if trace.exists() and not (result.failure.is_whole or result.failure.line.endswith("...")):
            line += f" (traceback: {trace})"
        return line
    command = f"{job.settings.command} resume {run_name(job.sweep_folder)}"
    reason = "the budget is spent" if result.reason == "budget" else result.state
    return f"{reason}; what it saved is kept; continue with: {command}"


def unfinished_line(unfinished: int, total: int) -> str:
    """Return the line for a launch of several jobs of which some did not finish."""
    return f"{unfinished} of {total} jobs did not finish"


def with_own_names(text: str, jobs: Sequence[Job]) -> str:
    """Replace names of launcher settings by the application's settings that fill them."""
    names = filled_settings(jobs[0].config) if jobs else {}
    return re.sub(r"hydra\.launcher(\.\w+)+", lambda match: names.get(match[0], match[0]), text)


def filled_settings(config: DictConfig) -> dict[str, str]:
    """Return the launcher settings that interpolate an application setting, with that setting.

    `gpu: ${gpu.type}` gives `{"hydra.launcher.gpu": "gpu.type"}`.
    """
    filled = {}
    for name in config.hydra.launcher:
        value = config.hydra.launcher._get_node(name)._value()
        match = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
        if match and name not in ("resume", "app_name"):
            filled[f"hydra.launcher.{name}"] = match[1]
    return filled


def results_table(rows: Sequence[tuple[Row, JobResult]], *, metric: str) -> Table:
    """Return the table of the results, in the order of the rows."""
    has_costs = any(result.usd for _, result in rows)
    table = plain_table()
    table.add_column("job", justify="right")
    table.add_column("state", no_wrap=True)
    table.add_column(metric, justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    if has_costs:
        table.add_column("USD", justify="right", no_wrap=True)
    table.add_column("gpu", no_wrap=True)
    table.add_column("overrides", overflow="fold")
    for row, result in rows:
        reason = f" ({result.reason})" if result.reason else ""
        state = Text(result.state + reason, style=_STATE_STYLES.get(result.state, "yellow"))
        cost = [f"{result.usd:.2f}"] if has_costs else []
        value = format_value(result.returned.get("value")) if result.is_done else "-"
        seconds = duration(result.seconds)
        table.add_row(str(row.num), state, value, seconds, *cost, row.gpu, row.label)
    if has_costs and len(rows) > 1:
        total = sum(result.usd for _, result in rows)
        table.add_section()
        table.add_row("all", "", "", "", f"{total:.2f}", "", "", style="bold")
    return table

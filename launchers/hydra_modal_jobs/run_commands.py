"""Commands on runs that exist: `runs`, `runs attach|logs|cancel|pull RUN`, `resume RUN`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from rich import box
from rich.console import Console
from rich.table import Table

from hydra_modal_jobs import launch as _launch
from hydra_modal_jobs.errors import JobFailed, LaunchRefused
from hydra_modal_jobs.follow.watch import INTERRUPTED, fetch, watch
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.manifest import MANIFEST, RunManifest, name_of, recorded

USAGE = {
    "runs": "runs: what was launched from here, with its state",
    "attach": "runs attach RUN: watch its jobs to their end, as if they had been launched now",
    "logs": "runs logs RUN [JOB]: what its jobs have printed",
    "cancel": "runs cancel RUN [JOB ...]: end its jobs; what they have saved is kept",
    "pull": "runs pull RUN [JOB ...] [--checkpoints]: fetch the files of its jobs",
}


def runs(words: Sequence[str], *, root: Path) -> None:
    """`runs ...`: RUN is a name under `root`, or the path of a run's folder."""
    actions: dict[str, Callable[[RunManifest, list[str]], None]] = {
        "attach": _attach,
        "logs": _logs,
        "cancel": _cancel,
        "pull": _pull,
    }
    if not words:
        _list(root)
        return
    action, *rest = words
    if action not in actions:
        raise LaunchRefused(f"runs {action}: no such command (choose from: {', '.join(actions)})")
    if not rest:
        raise LaunchRefused(f"runs {action}: name the run; `runs` lists them")
    actions[action](RunManifest.load(_folder(rest[0], root)), rest[1:])


def resume(words: Sequence[str], *, root: Path) -> None:
    """`resume RUN [KEY=VALUE ...]`: run again what did not finish, with the configuration of then.

    What may be another now is where and how the jobs run, not what they do.
    """
    if not words or any("=" not in word for word in words[1:]):
        raise LaunchRefused("resume: name one run; `runs` lists them")
    setup_globals()
    record = RunManifest.load(_folder(words[0], root))
    jobs = [_launch.with_changes(_reopened(record, entry), words[1:]) for entry in record.jobs]
    _refuse_running(record)
    open_jobs = [job for job in jobs if (job.result or {}).get("state") != "done"]
    console = Console(file=sys.stdout)
    if not open_jobs:
        console.print("Every job of this run is done.")
        _launch.show(console, jobs, {job.num: job.result or {} for job in jobs})
        return
    for job in open_jobs:
        job.function()
    before = HydraConfig.instance().cfg
    try:
        _launch.run(open_jobs, context=None, again=True)
    finally:
        HydraConfig.instance().cfg = before
    results = [(job, job.result or {"state": "not begun"}) for job in jobs]
    if len(jobs) > len(open_jobs):
        console.print("The whole run:")
        _launch.show(console, jobs, {job.num: result for job, result in results})
    unfinished = [job for job, result in results if result["state"] != "done"]
    detached = open_jobs[0].settings.detach and not open_jobs[0].is_local
    if unfinished and not detached:
        only = len(jobs) == 1
        line = _launch.failure_line(unfinished[0], unfinished[0].result or {"state": "not begun"})
        raise JobFailed(line if only else f"{len(unfinished)} of {len(jobs)} jobs did not finish")


def _list(root: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "launched", "jobs", "states", "USD"):
        table.add_column(column, no_wrap=column == "run")
    folders = recorded(root)
    for folder in folders:
        record = RunManifest.load(folder)
        states = [record.state(entry) for entry in record.jobs]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        results = [record.result(entry) or {} for entry in record.jobs]
        usd = sum(float(result.get("usd") or 0.0) for result in results)
        table.add_row(
            name_of(folder), record.content["created"], str(len(states)), counts, f"{usd:.2f}"
        )
    if not folders:
        print(f"No runs in {root}/ yet.")
        return
    Console(file=sys.stdout).print(table)


def _attach(record: RunManifest, words: list[str]) -> None:
    jobs = {entry["num"]: _reopened(record, entry) for entry in record.jobs}
    going = [entry["num"] for entry in record.jobs if record.state(entry) == "launched"]
    rows = _launch.rows_of(list(jobs.values()))
    if going:
        watch(record, {num: rows[num] for num in going}, next(iter(jobs.values())).settings)
    results = {
        entry["num"]: record.result(entry) or {"state": record.state(entry)}
        for entry in record.jobs
    }
    console = Console(file=sys.stdout)
    _launch.show(console, list(jobs.values()), results)
    failed = [num for num in jobs if results[num]["state"] != "done"]
    for num in failed:
        line = _launch.failure_line(jobs[num], results[num])
        console.print(f"[{num}] {line}", markup=False, highlight=False, soft_wrap=True)
    if any(results[num].get("reason") == INTERRUPTED for num in going):
        sys.exit(130)
    if failed:
        raise JobFailed(f"{len(failed)} of {len(jobs)} jobs did not finish")


def _logs(record: RunManifest, words: list[str]) -> None:
    chosen = _chosen(record, words)
    for entry in chosen:
        prefix = f"[{entry['num']}] " if len(chosen) > 1 else ""
        for line in _log_lines(record, entry):
            print(prefix + line)


def _log_lines(record: RunManifest, entry: dict[str, Any]) -> list[str]:
    """The file that came back with the job's results; before that, what the volume has."""
    path = record.folder_of(entry) / "log.txt"
    if record.state(entry) == "launched":
        from hydra_modal_jobs.backends import modal_app as _modal

        return _modal.read(entry, "log.txt").splitlines()
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _cancel(record: RunManifest, words: list[str]) -> None:
    going = [e for e in _chosen(record, words) if record.state(e) == "launched"]
    if not going:
        print("No job of this run is queued or running on Modal.")
        return
    from hydra_modal_jobs.backends import modal_app as _modal

    for entry in going:
        _modal.cancel(entry["call"])
    _settle(record, going)
    print(f"{len(going)} {'job' if len(going) == 1 else 'jobs'} ended; what they saved is kept.")


def _settle(record: RunManifest, entries: list[dict[str, Any]]) -> None:
    """Wait for the last words of cancelled jobs, and take the app away with its last job."""
    settings = _reopened(record, record.jobs[0]).settings
    rows = _launch.rows_of([_reopened(record, entry) for entry in entries])
    others = [e for e in record.jobs if e not in entries and record.state(e) == "launched"]
    watch(record, rows, settings, keep_app=bool(others), quiet=True)


def _pull(record: RunManifest, words: list[str]) -> None:
    checkpoints = "--checkpoints" in words
    for entry in _chosen(record, [word for word in words if word != "--checkpoints"]):
        if not entry.get("call"):
            print(f"[{entry['num']}] its files are here: {record.folder_of(entry)}")
            continue
        names = fetch(record, entry, checkpoints=checkpoints)
        print(f"[{entry['num']}] {len(names)} files fetched into {record.folder_of(entry)}")


def _refuse_running(record: RunManifest) -> None:
    going = [entry for entry in record.jobs if record.state(entry) == "launched"]
    if going:
        from hydra_modal_jobs.backends import modal_app as _modal

        alive = [entry for entry in going if _modal.is_pending(entry["call"])]
        if alive:
            raise LaunchRefused(
                f"{name_of(record.folder)}: {len(alive)} jobs are still queued or running; watch "
                "them with runs attach, or end them with runs cancel"
            )
        _settle(record, going)


def _chosen(record: RunManifest, words: list[str]) -> list[dict[str, Any]]:
    numbers = {entry["num"] for entry in record.jobs}
    for word in words:
        if not word.isdigit() or int(word) not in numbers:
            run = name_of(record.folder)
            raise LaunchRefused(f"{word}: no such job in {run} (it has {len(numbers)})")
    return [entry for entry in record.jobs if not words or str(entry["num"]) in words]


def _reopened(record: RunManifest, entry: dict[str, Any]) -> Job:
    from hydra_modal_jobs.jobs.job import reopen

    job = reopen(record.folder_of(entry))
    if job is None:
        raise LaunchRefused(f"{record.folder_of(entry)}: its .job/job.json is missing or torn")
    return job


def _folder(word: str, root: Path) -> Path:
    named = root / word
    if (named / MANIFEST).exists():
        return named
    if (Path(word) / MANIFEST).exists():
        return Path(word)
    known = [name_of(folder) for folder in recorded(root)]
    shown = f" (runs here: {', '.join(known[-5:])})" if known else ""
    raise LaunchRefused(f"{word}: no such run, neither in {root}/ nor as a folder{shown}")

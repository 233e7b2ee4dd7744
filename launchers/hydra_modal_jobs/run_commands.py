"""The commands on runs that exist: `runs`, `runs attach|logs|cancel|pull RUN`, `resume RUN`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hydra_modal_jobs import report
from hydra_modal_jobs.backends import backend_of_entry
from hydra_modal_jobs.backends.base import Backend
from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import JobFailed, LaunchRefused, UserLeft
from hydra_modal_jobs.follow.watch import watch
from hydra_modal_jobs.interrupts import end_quietly
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.jobs.result import CTRL_C, JobResult
from hydra_modal_jobs.jobs.saved import describe
from hydra_modal_jobs.manifest import LAUNCHED, RunManifest, is_run, run_folders, run_name
from hydra_modal_jobs.pending import wait_until_ended
from hydra_modal_jobs.resuming import resume_run
from hydra_modal_jobs.tables import plain_table
from hydra_modal_jobs.text import print_line

_TRUST = "--trust"

USAGE = {
    "runs": "runs: what was launched from here, with its state",
    "attach": "runs attach RUN: watch its jobs to their end, as if they had been launched now",
    "logs": "runs logs RUN [JOB]: what its jobs have printed",
    "cancel": "runs cancel RUN [JOB ...]: end its jobs; what they have saved is kept",
    "pull": "runs pull RUN [JOB ...] [--checkpoints]: fetch the files of its jobs",
    "resume": "resume RUN [SETTING=VALUE ...] [--trust]: run again what did not finish; --trust: "
    "also a folder from another machine, whose code it then runs",
}


def runs(words: Sequence[str], *, root: Path) -> None:
    """Run the command `runs WORDS`; a RUN is a name under `root`, or the path of its folder.

    Nothing in the folder is run, since it may come from anyone.
    """
    actions: dict[str, Callable[[_Run, list[str]], None]] = {
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
    try:
        actions[action](_Run(_folder(rest[0], root)), rest[1:])
    except UserLeft:
        end_quietly()
        raise


def resume(
    words: Sequence[str], *, root: Path, former_names: Mapping[str, str] | None = None
) -> None:
    """Run the command `resume RUN [KEY=VALUE ...] [--trust]`; a RUN is that of `runs`.

    `former_names` maps the application's modules, or `module:name`, as runs of earlier versions
    call them, to their present names.
    """
    is_trusted = _TRUST in words
    words = [word for word in words if word != _TRUST]
    if not words or any("=" not in word for word in words[1:]):
        raise LaunchRefused("resume: name one run; `runs` lists them")
    folder = _folder(words[0], root)
    resume_run(folder, words[1:], former_names=former_names, is_trusted=is_trusted)


class _Run:
    """A run that exists, with its jobs."""

    def __init__(self, folder: Path) -> None:
        self.manifest = RunManifest.load(folder)
        self.manifest.refuse_outside()

    def job(self, entry: Mapping[str, Any]) -> Job:
        return describe(self.manifest.folder, entry)

    def jobs(self) -> list[Job]:
        return [self.job(entry) for entry in self.manifest.jobs]

    def backend(self, entry: Mapping[str, Any]) -> Backend:
        """Return the backend of a job to read its files, for which no settings are needed."""
        return backend_of_entry(self.manifest, entry)(self.manifest, ModalJobsConf())

    def is_going(self, entry: Mapping[str, Any]) -> bool:
        return self.manifest.state(dict(entry)) == LAUNCHED

    def chosen(self, words: Sequence[str]) -> list[dict[str, Any]]:
        """Return the entries of the jobs whose numbers are given; all if none is given."""
        nums = {str(entry["num"]) for entry in self.manifest.jobs}
        for word in words:
            if word not in nums:
                raise LaunchRefused(
                    f"{word}: no such job in {self.manifest.name} (it has {len(nums)})"
                )
        return [e for e in self.manifest.jobs if not words or str(e["num"]) in words]


def _list(root: Path) -> None:
    table = plain_table()
    for column in ("run", "launched", "jobs", "states", "USD"):
        table.add_column(column, no_wrap=column == "run")
    folders = run_folders(root)
    for folder in folders:
        manifest = RunManifest.load(folder)
        states = [manifest.state(entry) for entry in manifest.jobs]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        results = [manifest.result(entry) for entry in manifest.jobs]
        usd = sum(result.usd for result in results if result)
        launched = manifest.content["created"]
        table.add_row(run_name(folder), launched, str(len(states)), counts, f"{usd:.2f}")
    if not folders:
        print_line(f"No runs in {root}/ yet.")
        return
    Console(file=sys.stdout).print(table)


def _attach(run: _Run, words: list[str]) -> None:
    manifest, jobs = run.manifest, run.jobs()
    rows = report.rows_of(jobs)
    by_backend: dict[str, list[Job]] = {}
    for entry, job in zip(manifest.jobs, jobs, strict=True):
        if run.is_going(entry):
            by_backend.setdefault(entry["backend"], []).append(job)
    is_interrupted = False
    for members in by_backend.values():
        kind = backend_of_entry(manifest, manifest.entry(members[0].num))
        backend = kind(manifest, members[0].settings)
        backend.reach([job.num for job in members])
        ended = watch(backend, {job.num: rows[job.num] for job in members})
        is_interrupted |= any(each.result.reason == CTRL_C for each in ended.values())
    results = {
        entry["num"]: manifest.result(entry) or JobResult(manifest.state(entry))
        for entry in manifest.jobs
    }
    console = Console(file=sys.stdout)
    report.print_results(console, jobs, results)
    failed = report.print_failures(console, jobs, results)
    if is_interrupted:
        sys.exit(130)
    if failed:
        raise JobFailed(report.unfinished_line(len(failed), len(jobs)))


def _logs(run: _Run, words: list[str]) -> None:
    chosen = run.chosen(words)
    for entry in chosen:
        prefix = f"[{entry['num']}] " if len(chosen) > 1 else ""
        for line in run.backend(entry).read_log(entry["num"]).splitlines():
            print_line(prefix + line)


def _cancel(run: _Run, words: list[str]) -> None:
    going = [run.job(entry) for entry in run.chosen(words) if run.is_going(entry)]
    if not going:
        print_line("No job of this run is queued, or running without its launch.")
        return
    wait_until_ended(run.manifest, going, cancels=True)
    count = len(going)
    print_line(f"{count} {'job' if count == 1 else 'jobs'} ended; what they saved is kept.")


def _pull(run: _Run, words: list[str]) -> None:
    checkpoints = "--checkpoints" in words
    reached: set[str] = set()
    for entry in run.chosen([word for word in words if word != "--checkpoints"]):
        folder = run.manifest.folder_of(entry)
        backend = run.backend(entry)
        if entry["backend"] not in reached:
            backend.reach([entry["num"]])
            reached.add(entry["backend"])
        names = backend.fetch(entry["num"], checkpoints=checkpoints)
        if names is None:
            print_line(f"[{entry['num']}] its files are here: {folder}")
        else:
            print_line(f"[{entry['num']}] {len(names)} files fetched into {folder}")


def _folder(word: str, root: Path) -> Path:
    for folder in (root / word, Path(word)):
        if is_run(folder):
            return folder
    names = [run_name(folder) for folder in run_folders(root)]
    known = f" (runs here: {', '.join(names[-5:])})" if names else ""
    raise LaunchRefused(f"{word}: no such run, neither in {root}/ nor as a folder{known}")

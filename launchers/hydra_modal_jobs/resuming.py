"""The command `resume`: runs again what did not finish, with the configuration of its launch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from rich.console import Console

from hydra_modal_jobs import launch, report
from hydra_modal_jobs.backends import backend_of
from hydra_modal_jobs.claim import claim_run, undo_all
from hydra_modal_jobs.errors import JobFailed, LaunchRefused
from hydra_modal_jobs.jobs.job import Job, update_payload, writable
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.jobs.saved import describe, reopen, trust
from hydra_modal_jobs.manifest import RunManifest
from hydra_modal_jobs.pending import refuse_pending


def resume_run(
    folder: Path,
    overrides: Sequence[str],
    *,
    former_names: Mapping[str, str] | None = None,
    is_trusted: bool = False,
) -> None:
    """Run again the jobs of a run that did not finish.

    The overrides may change where and how the jobs run, not what they do. `is_trusted` accepts a
    folder from elsewhere, whose code then runs. Raises `JobFailed` if some of the jobs do not
    finish this time either.
    """
    setup_globals()
    manifest = RunManifest.load(folder)
    manifest.refuse_outside()
    claim_run(folder)
    try:
        if is_trusted:
            for entry in manifest.jobs:
                trust(manifest.folder_of(entry))
        _resume(manifest, overrides, former_names=former_names)
    finally:
        undo_all()


def _resume(
    manifest: RunManifest, overrides: Sequence[str], *, former_names: Mapping[str, str] | None
) -> None:
    jobs = [describe(manifest.folder, entry) for entry in manifest.jobs]
    refuse_pending(manifest, jobs)
    console = Console(file=sys.stdout)
    if all(job.result and job.result.is_done for job in jobs):
        console.print("Every job of this run is done.")
        report.print_results(console, jobs, _results(jobs))
        return
    unfinished = [
        reopen(job.folder, former_names=former_names)
        for job in jobs
        if not (job.result and job.result.is_done)
    ]
    for job in unfinished:
        _change(job, overrides)
        job.function()  # refuses a task that cannot be imported
    before = HydraConfig.instance().cfg
    try:
        launch.run(unfinished, context=None, is_resumed=True)
    finally:
        HydraConfig.instance().cfg = before
    results = _results(jobs)
    if len(jobs) > len(unfinished):
        console.print("The whole run:")
        report.print_results(console, jobs, results)
    failed = [job for job in jobs if not results[job.num].is_done]
    settings = unfinished[0].settings
    is_detached = settings.detach and backend_of(settings).is_remote
    if failed and not is_detached:
        line = report.failure_line(failed[0], results[failed[0].num])
        raise JobFailed(line if len(jobs) == 1 else report.unfinished_line(len(failed), len(jobs)))


def _change(job: Job, overrides: Sequence[str]) -> None:
    """Change the launcher's settings of a job; refuse to change any other setting."""
    names = {source: name for name, source in report.filled_settings(job.config).items()}
    with writable(job.config):
        for override in overrides:
            key, _, value = override.partition("=")
            if key not in names and not key.startswith("hydra.launcher."):
                raise LaunchRefused(
                    f"{key}: a resumed job keeps the configuration of its launch; only these can "
                    f"be changed: {', '.join(sorted(names))}, hydra.launcher.*"
                )
            OmegaConf.update(job.config, key, OmegaConf.create(f"x: {value}").x)
    update_payload(job)


def _results(jobs: Sequence[Job]) -> dict[int, JobResult]:
    return {job.num: job.result or JobResult("not begun") for job in jobs}

"""Everything that can be known to be wrong with a launch before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from omegaconf import OmegaConf

from hydra_modal_jobs.backends import backend_class, backend_name, backend_of
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.jobs.job import Job, activate, application_config
from hydra_modal_jobs.manifest import run_name
from hydra_modal_jobs.named_code import check_named_code
from hydra_modal_jobs.paths import JOB_FILE
from hydra_modal_jobs.secrets import Secrets


def check(
    jobs: Sequence[Job], secrets: Secrets, *, is_resumed: bool, later: Sequence[Job] = ()
) -> None:
    """Raise `LaunchRefused`, or what the application's own check raises, if a job is wrong.

    `later` are the jobs of the sweep's further batches.
    """
    folders: dict[Path, Job] = {}
    for job in (*jobs, *later):
        other = folders.setdefault(job.folder, job)
        if other is not job:
            raise LaunchRefused(
                f"hydra.sweep.subdir: jobs {other.num} and {job.num} would both write to "
                f"{job.folder}; let it hold ${{hydra.job.num}}"
            )
        if (job.folder / JOB_FILE).exists() and not (is_resumed or job.settings.resume):
            raise LaunchRefused(
                f"{job.folder} holds a job already; take another hydra.sweep.dir, or continue "
                f"with: {job.settings.command} resume {run_name(job.sweep_folder)}"
            )
        _check_job(job, secrets)
    for name, members in by_backend_name(jobs).items():
        backend_class(name).check_together(members)
    if jobs[0].settings.plan_only:
        return
    for name, members in by_backend_name(jobs).items():
        resumes = is_resumed or jobs[0].settings.resume
        backend_class(name).check_launch(members, resumes=resumes)


def by_backend_name(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Group the jobs by the name of their backend."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(backend_name(job.settings), []).append(job)
    return groups


def _check_job(job: Job, secrets: Secrets) -> None:
    activate(job.config)
    config = application_config(job.config)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise LaunchRefused(f"{missing[0]}: a value is missing; give {missing[0]}=...")
    if job.settings.on_interrupt not in ("ask", "cancel", "leave"):
        raise LaunchRefused(
            f"hydra.launcher.on_interrupt={job.settings.on_interrupt}: ask, cancel or leave"
        )
    check_named_code(config, job.settings.code)
    if job.settings.check:
        module, _, name = job.settings.check.partition(":")
        getattr(import_module(module), name)(config)
    secrets.refuse_in(job.payload["config"], what=f"the configuration of job {job.num}")
    secrets.refuse_in(str(job.overrides), what="an override")
    backend_of(job.settings).check_job(job)

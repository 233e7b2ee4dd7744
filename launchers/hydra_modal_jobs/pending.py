"""Jobs of a run that are queued or running elsewhere: waited for, or a reason to refuse."""

from __future__ import annotations

from collections.abc import Sequence

from hydra_modal_jobs import report
from hydra_modal_jobs.backends import backend_of_entry
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.follow.watch import watch
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.manifest import LAUNCHED, RunManifest


def wait_until_ended(manifest: RunManifest, jobs: Sequence[Job], *, cancels: bool) -> None:
    """Wait until these remote jobs have ended; with `cancels`, cancel them first.

    Their app is stopped unless other jobs of the run need it.
    """
    rows = report.rows_of(jobs)
    going = [entry["num"] for entry in manifest.jobs if manifest.state(entry) == LAUNCHED]
    by_backend: dict[str, list[int]] = {}
    for job in jobs:
        by_backend.setdefault(manifest.entry(job.num)["backend"], []).append(job.num)
    for nums in by_backend.values():
        backend = backend_of_entry(manifest, manifest.entry(nums[0]))(manifest, jobs[0].settings)
        backend.reach(nums)
        watch(
            backend,
            {num: rows[num] for num in nums},
            keeps_others=bool(set(going) - set(rows)),
            is_quiet=True,
            cancels=cancels,
        )


def refuse_pending(manifest: RunManifest, jobs: Sequence[Job]) -> None:
    """Refuse while jobs are queued or running; bring back those that have ended meanwhile."""
    going = [job for job in jobs if manifest.state(manifest.entry(job.num)) == LAUNCHED]
    pending = 0
    for job in going:
        backend = backend_of_entry(manifest, manifest.entry(job.num))(manifest, job.settings)
        pending += backend.is_pending(job.num)
    if pending:
        jobs_are = "1 job is" if pending == 1 else f"{pending} jobs are"
        raise LaunchRefused(
            f"{manifest.name}: {jobs_are} still queued or running; watch with runs attach, or end "
            "with runs cancel"
        )
    if going:
        wait_until_ended(manifest, going, cancels=False)

"""A launch from end to end: compose the jobs, check them, show the plan, run them, report."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from hydra_modal_jobs import bundle, plan, report
from hydra_modal_jobs.backends import backend_class, backend_name, backend_of
from hydra_modal_jobs.backends.base import Backend, Ended
from hydra_modal_jobs.claim import claim_run, undo_all
from hydra_modal_jobs.errors import JobFailed, LaunchRefused, UserLeft
from hydra_modal_jobs.files import write_atomically
from hydra_modal_jobs.follow.watch import watch
from hydra_modal_jobs.interrupts import end_quietly
from hydra_modal_jobs.jobs.compose import compose
from hydra_modal_jobs.jobs.job import Job, application_config, cost_key, gpu_label, writable
from hydra_modal_jobs.jobs.result import CTRL_C, JobResult
from hydra_modal_jobs.jobs.saved import describe
from hydra_modal_jobs.jobs.sweep import sweep_of
from hydra_modal_jobs.launch_checks import by_backend_name, check
from hydra_modal_jobs.manifest import LAUNCHED, RunManifest, is_run, spent_usd
from hydra_modal_jobs.paths import JOB_FILE, LAUNCH_FILE, MULTIRUN_FILE
from hydra_modal_jobs.pending import refuse_pending
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.text import print_line


class LaunchedJobReturn(JobReturn):
    """A job's return that raises its failure without the line that Hydra prints before it."""

    @property
    def return_value(self) -> Any:
        """The value that the job returned. Raises the failure of a job that has none."""
        if self.status is JobStatus.COMPLETED:
            return self._return_value
        raise self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def launch(
    context: HydraContext,
    task: TaskFunction,
    master: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    *,
    first_number: int,
) -> list[JobReturn]:
    """Run the jobs of a sweep, whose own configuration is `master`; return one result for each."""
    setup_globals()
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    jobs: list[Job] = []
    before = HydraConfig.instance().cfg
    try:
        for num, overrides in enumerate(job_overrides, start=first_number):
            jobs.append(compose(context, task, master, overrides, num=num))
        sweep = sweep_of(master, job_overrides, first_number=first_number)
        if sweep.needs_values and any(_is_detached(job) for job in jobs):
            raise LaunchRefused(
                f"hydra.launcher.detach=true: {sweep.sweeper} chooses jobs by the values of those "
                "before, which a detached job has not yet; leave it out"
            )
        end = first_number + len(jobs)
        later = [
            compose(context, task, master, overrides, num=num)
            for num, overrides in enumerate(sweep.later, start=end)
        ]
        claim_run(jobs[0].sweep_folder)
        if first_number == 0:
            _refuse_beside_pending(jobs)
        _write_multirun(master, jobs[0].sweep_folder)
        unknown = 0 if later else sweep.later_count
        is_shown = first_number == 0 or sweep.needs_values
        return run(
            jobs, context=context, later=later, unknown_count=unknown, is_plan_shown=is_shown
        )
    except LaunchRefused as refused:
        raise LaunchRefused(report.with_own_names(str(refused), jobs)) from None
    except UserLeft as left:
        end_quietly()
        print_line(str(left), is_error=True)
        sys.exit(130)
    finally:
        HydraConfig.instance().cfg = before
        undo_all()  # what a launch wrote that was refused, only planned, or not begun


def run(
    jobs: list[Job],
    *,
    context: HydraContext | None,
    is_resumed: bool = False,
    later: Sequence[Job] = (),
    unknown_count: int = 0,
    is_plan_shown: bool = True,
) -> list[JobReturn]:
    """Check the jobs, show the plan, and run them; `is_resumed` continues in their folders.

    The plan and the budget are those of the whole sweep: `later` jobs of further batches, and
    `unknown_count` jobs that the sweeper has not chosen yet, are not run now. Raises
    `LaunchRefused` before anything runs, and `UserLeft` or `SystemExit` after Ctrl-C.
    """
    settings = jobs[0].settings
    secrets = Secrets.load(settings.secrets)
    with env_override(secrets.values()):  # the jobs have these variables, so settings may use them
        check(jobs, secrets, is_resumed=is_resumed, later=later)
    estimates = plan.estimate([*jobs, *later])
    console = Console(file=sys.stdout)
    if is_plan_shown:
        console.print(plan.plan_table(estimates, later_count=unknown_count), highlight=False)
        for name, members in by_backend_name([*jobs, *later]).items():
            for note in backend_class(name).plan_notes(members):
                print_line(note)
    already = spent_usd(jobs[0].sweep_folder)
    if settings.max_usd is not None:
        plan.refuse_above(estimates, settings.max_usd, spent=already, later_count=unknown_count)
    if settings.plan_only:
        sys.exit(0)
    shares = plan.shares(estimates, settings.max_usd, spent=already, later_count=unknown_count)
    launch_id = uuid.uuid4().hex[:8]
    for estimate, usd in zip(estimates[: len(jobs)], shares[: len(jobs)], strict=True):
        _complete_payload(estimate, secrets, launch_id=launch_id, usd=usd, is_resumed=is_resumed)
    claim = claim_run(jobs[0].sweep_folder)
    for path in (claim.folder / LAUNCH_FILE, *(job.folder / JOB_FILE for job in jobs)):
        claim.will_write(path)
    manifest = _begin_manifest(jobs)
    for job in jobs:
        job.save()
    groups = _by_backend(jobs, manifest, context)
    is_detached = settings.detach and any(backend.is_remote for backend, _ in groups)
    try:
        for backend, members in groups:
            if backend.is_remote:
                backend.submit(members, secrets)
        claim.keep()
        if is_detached:
            _print_detached(jobs, manifest)
        ended = _follow(groups, secrets, is_detached=is_detached)
    except BaseException as stop:
        going = [job for job in jobs if manifest.state(manifest.entry(job.num)) == LAUNCHED]
        if going:
            claim.keep()
        if going and isinstance(stop, KeyboardInterrupt) and not isinstance(stop, UserLeft):
            raise UserLeft(_left_line(groups[-1][0], going)) from None
        raise
    if is_detached:
        return [_job_return(job, ended.get(job.num, _queued(job))) for job in jobs]
    return _report(jobs, ended, console, is_alone=len(jobs) == 1 and not groups[0][0].is_remote)


def _refuse_beside_pending(jobs: Sequence[Job]) -> None:
    """Refuse to go on with a run some of whose jobs still go on elsewhere."""
    folder, settings = jobs[0].sweep_folder, jobs[0].settings
    if settings.resume and not settings.plan_only and is_run(folder):
        manifest = RunManifest.load(folder)
        manifest.refuse_outside()
        refuse_pending(manifest, [describe(folder, entry) for entry in manifest.jobs])


def _is_detached(job: Job) -> bool:
    return job.settings.detach and backend_of(job.settings).is_remote


def _complete_payload(
    estimate: plan.Estimate,
    secrets: Secrets,
    *,
    launch_id: str,
    usd: float | None,
    is_resumed: bool,
) -> None:
    """Add to the payload what a process elsewhere needs beside the configuration."""
    job, settings = estimate.job, estimate.job.settings
    job.payload |= {
        "launch": launch_id,
        "shape": cost_key(job),
        "resume": is_resumed or settings.resume,
        "resume_key": settings.resume_key,
        "metrics": settings.metrics,
        "show": list(settings.show),
        "checkpoints": settings.checkpoints,
        "secret_names": secrets.names,
        "limits": {
            "retries": settings.retries,
            "processes": job.processes,
            "seconds": backend_of(settings).attempt_seconds(settings),
            "usd": usd,
            "usd_per_hour": estimate.per_hour[1] or 0.0,
        },
    }


def _begin_manifest(jobs: list[Job]) -> RunManifest:
    task = jobs[0].payload["task"]["name"]
    file = getattr(sys.modules.get(task.partition(":")[0]), "__file__", None)
    source = bundle.git_state(Path(file).parent) if file else None
    for job in jobs:
        job.payload["source"] = source
    manifest = RunManifest.begin(jobs[0].sweep_folder, task=task, source=source)
    manifest.update(
        [
            {
                "num": job.num,
                "overrides": job.overrides,
                "subdir": job.payload["subdir"],
                "gpu": gpu_label(job),
                "backend": backend_name(job.settings),
                "launch": job.payload["launch"],
                "usd_per_hour": job.payload["limits"]["usd_per_hour"],
                "call": None,
                "app": None,
            }
            for job in jobs
        ]
    )
    return manifest


def _by_backend(
    jobs: Sequence[Job], manifest: RunManifest, context: HydraContext | None
) -> list[tuple[Backend, list[Job]]]:
    """Return each backend with its jobs, those last whose jobs run without this process."""
    groups = [
        (backend_class(name)(manifest, members[0].settings, context=context), members)
        for name, members in by_backend_name(jobs).items()
    ]
    return sorted(groups, key=lambda group: group[0].is_remote)


def _follow(
    groups: list[tuple[Backend, list[Job]]], secrets: Secrets, *, is_detached: bool
) -> dict[int, Ended]:
    """Run the jobs of this machine and follow the others; return how each ended, by number.

    Ctrl-C asks about every job that goes on, wherever. Raises `UserLeft` if the user leaves.
    """
    all_jobs = [job for _, members in groups for job in members]
    rows = report.rows_of(all_jobs)
    ended: dict[int, Ended] = {}
    left: UserLeft | None = None
    is_interrupted = False
    for backend, members in groups:
        if backend.is_remote and is_detached:
            continue
        try:
            if not backend.is_remote:
                backend.submit(members, secrets)
            own_rows = {job.num: rows[job.num] for job in members}
            ended |= watch(backend, own_rows, is_interrupted=is_interrupted)
            is_interrupted |= any(_is_interrupted(each) for each in ended.values())
            if backend.is_foreground:
                _raise_if_interrupted(backend, [ended[job.num].result for job in members])
        except KeyboardInterrupt as stop:
            is_interrupted = True
            is_known = isinstance(stop, UserLeft)
            text = str(stop) if is_known else _left_line(backend, members)
            left = UserLeft(f"{left} {text}" if left else text)
    if left is None:
        return ended
    _print_finished(all_jobs, ended)
    remote = [(backend, members) for backend, members in groups if backend.is_remote]
    if is_detached and remote:
        left = UserLeft(f"{left} {_left_line(*remote[0])}")
    raise left


def _left_line(backend: Backend, jobs: Sequence[Job]) -> str:
    """Return what the user leaves behind who pressed Ctrl-C at a moment without a question."""
    manifest = backend.manifest
    count = sum(manifest.state(manifest.entry(job.num)) == LAUNCHED for job in jobs)
    if not count:
        return "Stopped."
    command, name = backend.settings.command, manifest.name
    return (
        f"{count} {'job goes' if count == 1 else 'jobs go'} on {backend.title} and may cost money; "
        f"watch: {command} runs attach {name}; end: {command} runs cancel {name}"
    )


def _raise_if_interrupted(backend: Backend, results: list[JobResult]) -> None:
    """Raise `UserLeft` with the last words of the job in the foreground that Ctrl-C ended."""
    interrupted = [result for result in results if result.reason == CTRL_C]
    if interrupted:
        command = f"{backend.settings.command} resume {backend.manifest.name}"
        last_words = next((each.last_words for each in interrupted if each.last_words), None)
        raise UserLeft(last_words or f"Interrupted. Continue with: {command}")


def _is_interrupted(ended: Ended) -> bool:
    return ended.result.reason == CTRL_C


def _print_finished(jobs: list[Job], ended: dict[int, Ended]) -> None:
    """Print the results that there are when the user leaves a launch of several jobs."""
    results = {num: each.result for num, each in ended.items() if not _is_interrupted(each)}
    if results and len(jobs) > 1:
        report.print_results(Console(file=sys.stdout), jobs, results)


def _print_detached(jobs: list[Job], manifest: RunManifest) -> None:
    remote = [job for job in jobs if backend_of(job.settings).is_remote]
    title = backend_of(remote[0].settings).title
    command, count = jobs[0].settings.command, len(remote)
    print_line(
        f"{count} {'job' if count == 1 else 'jobs'} queued {title}.\n"
        f"  watch:  {command} runs attach {manifest.name}\n"
        f"  end:    {command} runs cancel {manifest.name}"
    )


def _queued(job: Job) -> Ended:
    """Return the end of a job that goes on: to a sweeper it must look done."""
    return Ended(job.num, JobResult("done"))


def _report(
    jobs: list[Job], ended: dict[int, Ended], console: Console, *, is_alone: bool
) -> list[JobReturn]:
    """Print the table and the failures, and return the sweeper's results.

    A single job on this machine has printed its own output; its failure is raised, not printed.
    """
    results = {num: each.result for num, each in ended.items()}
    failed = [job for job in jobs if not results[job.num].is_done]
    if not (is_alone and failed):
        report.print_results(console, jobs, results)
    if not is_alone:
        report.print_failures(console, jobs, results)
    if any(_is_interrupted(each) for each in ended.values()):
        sys.exit(130)  # a sweeper must not go on either
    returns: list[JobReturn] = []
    for job in jobs:
        returned = _job_return(job, ended[job.num])
        if job in failed:
            line = report.unfinished_line(len(failed), len(jobs))
            failure = JobFailed(report.failure_line(job, results[job.num]) if is_alone else line)
            if isinstance(returned._return_value, BaseException):
                failure.__cause__ = returned._return_value
            returned.return_value = failure
        returns.append(returned)
    return returns


def _job_return(job: Job, ended: Ended) -> LaunchedJobReturn:
    result, returned = ended.result, ended.returned
    # A working directory elsewhere is of no use here, but the job's folder is.
    is_here = not backend_of(job.settings).is_remote and bool(result.working_dir)
    launched = LaunchedJobReturn(
        overrides=job.overrides,
        cfg=application_config(job.config),
        hydra_cfg=OmegaConf.masked_copy(job.config, "hydra"),
        working_dir=result.working_dir if is_here else str(job.folder),
        task_name=job.payload["name"],
        status=JobStatus.COMPLETED if result.is_done else JobStatus.FAILED,
    )
    if returned is not None and returned.cfg is not None:
        launched.cfg, launched.hydra_cfg = returned.cfg, returned.hydra_cfg
        launched.working_dir, launched.task_name = returned.working_dir, returned.task_name
    launched.return_value = returned._return_value if returned is not None else result.value
    return launched


def _write_multirun(master: DictConfig, folder: Path) -> None:
    """Write `multirun.yaml` as Hydra's own sweeper does, but without the values of `env_copy`."""
    path, copied = folder / MULTIRUN_FILE, list(master.hydra.job.env_copy)
    if path.exists() and not copied:
        return
    shown = master.copy()
    with writable(shown):
        for name in copied:
            shown.hydra.job.env_set.pop(name, None)
    write_atomically(path, OmegaConf.to_yaml(shown))

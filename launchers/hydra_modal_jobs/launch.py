"""A launch from end to end: compose, check, plan, run, and say what came of it."""

from __future__ import annotations

import re
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from hydra_modal_jobs import bundle as _source
from hydra_modal_jobs import plan as _plan
from hydra_modal_jobs import prices as _prices
from hydra_modal_jobs.backends import local as _local
from hydra_modal_jobs.errors import Failure, JobFailed, LaunchRefused
from hydra_modal_jobs.files import write
from hydra_modal_jobs.follow.screen import Row, results_table
from hydra_modal_jobs.follow.watch import INTERRUPTED, Left, watch
from hydra_modal_jobs.jobs.job import (
    CONTROL,
    DAY,
    Job,
    application_config,
    changeable,
    compose,
    labels,
    put_in_force,
    renewed,
    shape,
)
from hydra_modal_jobs.manifest import RunManifest, name_of, spent
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.run_job import unpack


class Ended(JobReturn):
    """A job's return that raises its failure without Hydra's extra line on it."""

    @property
    def return_value(self) -> Any:
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
    first: int,
) -> list[JobReturn]:
    """Hydra's contract: one `JobReturn` a job, in order; reading a failed one raises."""
    setup_globals()
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    jobs: list[Job] = []
    before = HydraConfig.instance().cfg
    try:
        for index, overrides in enumerate(job_overrides):
            jobs.append(compose(context, task, master, overrides, num=first + index))
        _note_sweep(master, jobs[0].sweep_folder)
        return run(jobs, context=context)
    except LaunchRefused as refused:
        raise LaunchRefused(_named(str(refused), jobs)) from None
    except Left as left:
        print(left, file=sys.stderr)
        sys.exit(130)
    finally:
        HydraConfig.instance().cfg = before
        for folder in {job.sweep_folder for job in jobs} or {Path(str(master.hydra.sweep.dir))}:
            _remove_if_unused(folder)


def _note_sweep(master: DictConfig, folder: Path) -> None:
    """Write what only Hydra's own sweeper writes, and that with the values of `env_copy`."""
    path, copied = folder / "multirun.yaml", list(master.hydra.job.env_copy)
    if path.exists() and not copied:
        return
    shown = master.copy()
    with changeable(shown):
        for name in copied:
            shown.hydra.job.env_set.pop(name, None)
    write(path, OmegaConf.to_yaml(shown))


def run(jobs: list[Job], *, context: HydraContext | None, again: bool = False) -> list[JobReturn]:
    """Check the jobs, show the plan, and run them. `again` goes on in their folders."""
    settings = jobs[0].settings
    secrets = Secrets.find(settings.secrets)
    _check(jobs, secrets, again=again)
    remote = [job for job in jobs if not job.is_local]
    prices = _prices.live() if remote else _prices.TABLE
    estimates = _plan.estimate(jobs, prices)
    console = Console(file=sys.stdout)
    console.print(_plan.table(estimates, prices), highlight=False)
    already = spent(jobs[0].sweep_folder)
    if settings.max_usd is not None:
        _plan.refuse_above(estimates, settings.max_usd, spent=already)
    if settings.plan_only:
        sys.exit(0)
    shares = _plan.share(estimates, settings.max_usd, spent=already)
    identity = uuid.uuid4().hex[:8]
    for each, usd in zip(estimates, shares, strict=True):
        _complete(each, secrets, launch=identity, usd=usd, again=again)
    record = _begin(jobs)
    new = [job for job in jobs if not (job.folder / CONTROL).exists()]
    for job in jobs:
        job.save()
    try:
        if remote:
            _start(remote, secrets, record)
    except BaseException:
        _withdraw(new, record)
        raise
    if settings.detach and remote:
        return _detached(jobs, record, secrets, context)
    rows = rows_of(jobs)
    results, errors = _run(jobs, record, rows, secrets, context)
    returns = _report(jobs, rows, results, errors, console)
    if any(result.get("reason") == INTERRUPTED for result in results.values()):
        sys.exit(130)  # nor does a sweeper go on
    return returns


def _check(jobs: list[Job], secrets: Secrets, *, again: bool) -> None:
    """Everything that can be known to be wrong before anything is spent."""
    folders: dict[Path, Job] = {}
    for job in jobs:
        other = folders.setdefault(job.folder, job)
        if other is not job:
            raise LaunchRefused(
                f"hydra.sweep.subdir: jobs {other.num} and {job.num} would both write to "
                f"{job.folder}; let it hold ${{hydra.job.num}}"
            )
        if (job.folder / CONTROL).exists() and not (again or job.settings.resume):
            raise LaunchRefused(
                f"{job.folder} holds a job already; take another hydra.sweep.dir, or go on with: "
                f"{job.settings.command} resume {name_of(job.sweep_folder)}"
            )
        put_in_force(job.config)
        config = application_config(job.config)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise LaunchRefused(f"{missing[0]}: a value is missing; give {missing[0]}=...")
        if job.settings.on_interrupt not in ("ask", "cancel", "leave"):
            raise LaunchRefused(
                f"hydra.launcher.on_interrupt={job.settings.on_interrupt}: ask, cancel or leave"
            )
        if job.settings.check:
            module, _, name = job.settings.check.partition(":")
            getattr(import_module(module), name)(config)
        secrets.refuse_in(job.payload["config"], what=f"the configuration of job {job.num}")
        secrets.refuse_in(str(job.overrides), what="an override")
        if not job.is_local:
            from hydra_modal_jobs.backends import modal_app as _modal

            _modal.check_resources(job)
    remote = [job for job in jobs if not job.is_local]
    if remote and not jobs[0].settings.plan_only:
        from hydra_modal_jobs.backends import modal_app as _modal

        _modal.check_account()
        if not (again or jobs[0].settings.resume):
            _modal.refuse_taken(remote)


def _complete(
    estimate: _plan.Estimate, secrets: Secrets, *, launch: str, usd: float | None, again: bool
) -> None:
    """What the payload needs beside the configuration."""
    job, settings = estimate.job, estimate.job.settings
    job.payload |= {
        "launch": launch,
        "shape": shape(job),
        "resume": again or settings.resume,
        "resume_key": settings.resume_key,
        "metrics": settings.metrics,
        "show": list(settings.show),
        "checkpoints": settings.checkpoints,
        "secret_names": secrets.names,
        "limits": {
            "retries": settings.retries,
            "processes": job.processes,
            "seconds": None if job.is_local else min(settings.timeout, DAY),
            "usd": usd,
            "usd_per_hour": estimate.per_hour[1] or 0.0,
        },
    }


def _begin(jobs: list[Job]) -> RunManifest:
    task = jobs[0].payload["task"]["name"]
    module = sys.modules.get(task.partition(":")[0])
    file = getattr(module, "__file__", None)
    source = _source.git_state(Path(file).parent) if file else None
    for job in jobs:
        job.payload["source"] = source
    record = RunManifest.begin(jobs[0].sweep_folder, task=task, source=source)
    record.put(
        [
            {
                "num": job.num,
                "overrides": job.overrides,
                "subdir": job.payload["subdir"],
                "gpu": _plan.gpu_words(job),
                "launch": job.payload["launch"],
                "usd_per_hour": job.payload["limits"]["usd_per_hour"],
                "call": None,
            }
            for job in jobs
        ]
    )
    return record


def _start(jobs: list[Job], secrets: Secrets, record: RunManifest) -> None:
    """Queue the jobs on Modal and note where they are, before anything else can go wrong."""
    from hydra_modal_jobs.backends import modal_app as _modal

    def note(app: _modal.App, job: Job, call: str) -> None:
        record.put(
            [
                {
                    "num": job.num,
                    "call": call,
                    "app": {"id": app.id, "name": app.name, "url": app.url},
                    "volume": _modal.outputs_volume(job.settings),
                    "mount": job.settings.volumes.outputs,
                    "remote": str(_modal.remote_folder(job)),
                    "skip": job.settings.checkpoints,
                }
            ]
        )

    _modal.start(jobs, secrets, batch=jobs[0].num, note=note)


def _withdraw(new: list[Job], record: RunManifest) -> None:
    """A launch of which nothing was queued leaves nothing behind."""
    if any(entry["call"] for entry in record.jobs):
        return
    for job in new:
        shutil.rmtree(job.folder)
    if not any((record.folder_of(entry) / CONTROL).exists() for entry in record.jobs):
        record.path.unlink()


def _run(
    jobs: list[Job],
    record: RunManifest,
    rows: dict[int, Row],
    secrets: Secrets,
    context: HydraContext | None,
) -> tuple[dict[int, dict[str, Any]], dict[int, tuple[JobReturn, BaseException | None]]]:
    """Every job's result; those of this process with Hydra's return and their exception."""
    results: dict[int, dict[str, Any]] = {}
    errors: dict[int, tuple[JobReturn, BaseException | None]] = {}
    local = [job for job in jobs if job.is_local]
    most = jobs[0].settings.max_parallel or 1
    name = JobRuntime.instance().conf.get("name")
    try:
        several = any(job.processes > 1 for job in local) or (most > 1 and len(local) > 1)
        if several:
            with _local.pool(local, secrets, most=most) as pool:
                results |= watch(
                    record, {job.num: rows[job.num] for job in local}, jobs[0].settings, pool=pool
                )
        else:
            for job in local:
                JobRuntime.instance().set("name", job.payload["name"])
                result, returned, error = _local.in_process(job, context, secrets)
                results[job.num] = result
                errors[job.num] = (returned, error)
        if len(local) < len(jobs):
            calls = {job.num: rows[job.num] for job in jobs if not job.is_local}
            results |= watch(record, calls, jobs[0].settings)
    except KeyboardInterrupt:
        if results and len(jobs) > 1:
            ended = [(rows[num], result) for num, result in sorted(results.items())]
            Console(file=sys.stdout).print(results_table(ended, metric=jobs[0].settings.metric))
        raise
    finally:
        JobRuntime.instance().set("name", name)
    return results, errors


def _detached(
    jobs: list[Job], record: RunManifest, secrets: Secrets, context: HydraContext | None
) -> list[JobReturn]:
    command, name = jobs[0].settings.command, name_of(record.folder)
    local = [job for job in jobs if job.is_local]
    count = len(jobs) - len(local)
    print(
        f"{count} {'job' if count == 1 else 'jobs'} queued on Modal.\n"
        f"  watch:  {command} runs attach {name}\n"
        f"  end:    {command} runs cancel {name}"
    )
    for job in local:
        _local.in_process(job, context, secrets)
    return [_returned(job, {"state": "done"}) for job in jobs]


def _report(
    jobs: list[Job],
    rows: dict[int, Row],
    results: dict[int, dict[str, Any]],
    errors: dict[int, tuple[JobReturn, BaseException | None]],
    console: Console,
) -> list[JobReturn]:
    """Print the table and what failed; the sweeper's returns."""
    alone = len(jobs) == 1 and jobs[0].is_local
    failed = [job for job in jobs if results[job.num]["state"] != "done"]
    if not (alone and failed):
        show(console, jobs, results)
    lines = {job.num: failure_line(job, results[job.num]) for job in failed}
    if not alone:
        for job in failed:
            console.print(
                f"[{job.num}] {lines[job.num]}", markup=False, highlight=False, soft_wrap=True
            )
    returns: list[JobReturn] = []
    for job in jobs:
        returned = _returned(job, results[job.num], *errors.get(job.num, ()))
        if job in failed:
            line = lines[job.num] if alone else f"{len(failed)} of {len(jobs)} jobs did not finish"
            failure = JobFailed(line)
            failure.__cause__ = errors.get(job.num, (None, None))[1]
            returned.return_value = failure
        returns.append(returned)
    return returns


def rows_of(jobs: Sequence[Job]) -> dict[int, Row]:
    names = labels(jobs)
    return {job.num: Row(job.num, names[job.num], _plan.gpu_words(job)) for job in jobs}


def show(console: Console, jobs: Sequence[Job], results: Mapping[int, dict[str, Any]]) -> None:
    """The table of the jobs with their results."""
    rows = rows_of(jobs)
    ended = [(rows[job.num], results[job.num]) for job in jobs]
    console.print(results_table(ended, metric=jobs[0].settings.metric), highlight=False)


def failure_line(job: Job, result: dict[str, Any]) -> str:
    """The last line of a failure, what to change, and where its whole traceback lies."""
    state = result["state"]
    if state == "failed":
        failure = Failure.from_json(result["failure"])
        hint = failure.hint(dict(job.settings.hints))
        line = failure.line + (f"; {_named(hint, [job])}" if hint else "")
        trace = job.folder / "error.txt"
        if trace.exists() and not failure.line.endswith("..."):
            line += f" (traceback: {trace})"
        return line
    goes_on = f"go on with: {job.settings.command} resume {name_of(job.sweep_folder)}"
    reason = {"budget": "the budget is spent"}.get(result.get("reason") or "", state)
    return f"{reason}; what it saved is kept; {goes_on}"


def _returned(
    job: Job,
    result: dict[str, Any],
    returned: JobReturn | None = None,
    error: BaseException | None = None,
) -> JobReturn:
    done = result["state"] == "done"
    working = result.get("working_dir") or str(job.folder)
    ended = Ended(
        overrides=job.overrides,
        cfg=application_config(job.config),
        hydra_cfg=OmegaConf.masked_copy(job.config, "hydra"),
        working_dir=str(job.folder) if not job.is_local else working,
        task_name=job.payload["name"],
        status=JobStatus.COMPLETED if done else JobStatus.FAILED,
    )
    if returned is not None and returned.cfg is not None:
        ended.cfg, ended.hydra_cfg = returned.cfg, returned.hydra_cfg
        ended.working_dir, ended.task_name = returned.working_dir, returned.task_name
    ended.return_value = returned._return_value if returned is not None else unpack(result)
    return ended


def with_changes(job: Job, overrides: Sequence[str]) -> Job:
    """The job with other settings of where and how it runs; those of what it does are refused."""
    if not overrides:
        return job
    fills = {source: name for name, source in _filled(job.config).items()}
    with changeable(job.config):
        for word in overrides:
            key, _, value = word.partition("=")
            if key not in fills and not key.startswith("hydra.launcher."):
                raise LaunchRefused(
                    f"{key}: belongs to the configuration of then; to resume, only these can be "
                    f"changed: {', '.join(sorted(fills))}, hydra.launcher.*"
                )
            OmegaConf.update(job.config, key, OmegaConf.create(f"x: {value}").x)
    return renewed(job)


def _named(text: str, jobs: Sequence[Job]) -> str:
    """The text with the application's own settings for those of the launcher that they fill."""
    sources = _filled(jobs[0].config) if jobs else {}
    return re.sub(r"hydra\.launcher(\.\w+)+", lambda m: sources.get(m[0], m[0]), text)


def _filled(config: DictConfig) -> dict[str, str]:
    """The launcher's settings that are another setting's value: `{its name: the other's}`."""
    found = {}
    for name in config.hydra.launcher:
        value = config.hydra.launcher._get_node(name)._value()
        filled = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
        if filled and name not in ("resume", "app_name"):
            found[f"hydra.launcher.{name}"] = filled[1]
    return found


def _remove_if_unused(folder: Path) -> None:
    """A launch that was refused, or only planned, leaves nothing behind."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml"}:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # if it was made for this

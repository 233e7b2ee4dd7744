"""Jobs in this very process, one after another: for a debugger, a profiler, or a test."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hydra.core.utils import JobRuntime, env_override

from hydra_modal_jobs.backends.base import Backend, Ended, Event
from hydra_modal_jobs.errors import LaunchRefused, UserLeft
from hydra_modal_jobs.files import write_atomically
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.paths import ERROR_FILE
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.attempts import Ledger
from hydra_modal_jobs.worker.run_job import outcome_of, perform, redacted_logs, set_resume


class DebugBackend(Backend):
    """Runs a job when its event is asked for, without a supervisor; the first attempt counts."""

    name = "debug"
    title = "in this process"
    is_foreground = True

    @classmethod
    def check_job(cls, job: Job) -> None:
        """Refuse a job of several processes."""
        if job.processes > 1:
            raise LaunchRefused(
                f"hydra.launcher.backend=debug: the job needs {job.processes} processes, and this "
                "backend has one; take backend=local"
            )

    def submit(self, jobs: Sequence[Job], secrets: Secrets) -> None:
        """Keep the jobs."""
        self._waiting = list(jobs)
        self._secrets = secrets

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """Run the next job to its end. Raises `UserLeft` if Ctrl-C ends it."""
        if not self._waiting:
            return []
        name = JobRuntime.instance().conf.get("name")
        try:
            return [self._run(self._waiting.pop(0))]
        except KeyboardInterrupt as stop:
            raise UserLeft(str(stop) or "Stopped.") from stop
        finally:
            JobRuntime.instance().set("name", name)

    def cancel(self) -> None:
        """Leave out the jobs that have not begun; nothing else runs meanwhile."""
        self._waiting.clear()

    def _run(self, job: Job) -> Ended:
        JobRuntime.instance().set("name", job.payload["name"])
        ledger = Ledger(job.folder, job.payload["launch"])
        begun = time.time()
        ledger.begin(1, at=begun, checkpoints="", gpu=None)
        config = job.config.copy()
        if job.payload["resume"]:
            set_resume(config, job.payload["resume_key"])
        try:
            with env_override(self._secrets.values()), redacted_logs(self._secrets):
                returned, error = perform(config, job.function(), context=self.context)
                secrets = Secrets.from_environment(self._secrets.names)
                outcome = outcome_of(returned, error, secrets)
        except BaseException as stop:
            ledger.end(1, at=time.time(), ended_as=type(stop).__name__, checkpoints="")
            raise
        ended = time.time()
        ledger.end(1, at=ended, ended_as=outcome.state, checkpoints="")
        if outcome.failure is not None:
            write_atomically(job.folder / ERROR_FILE, outcome.failure.traceback)
        result = JobResult(
            outcome.state,
            failure=outcome.failure,
            returned=outcome.returned,
            working_dir=outcome.working_dir,
            launch=job.payload["launch"],
            seconds=round(ended - begun, 2),
            cost_key=job.payload["shape"],
            ended=ended,
        )
        return Ended(job.num, result, returned)

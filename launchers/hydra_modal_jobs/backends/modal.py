"""Jobs on Modal: queued in a deployed app, which goes on without the launching process."""

from __future__ import annotations

import queue
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NoReturn

from hydra_modal_jobs import bundle, prices
from hydra_modal_jobs.backends import modal_app, modal_volume
from hydra_modal_jobs.backends.base import Backend, Ended, Event, Line
from hydra_modal_jobs.backends.local import take_all
from hydra_modal_jobs.backends.modal_calls import Calls
from hydra_modal_jobs.backends.modal_errors import ANSWER_SECONDS, answer, as_refusal, within
from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused, UserLeft
from hydra_modal_jobs.interrupts import Work, noted_interrupts
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.manifest import LAUNCHED
from hydra_modal_jobs.paths import LOG_FILE
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.attempts import Ledger

_LAST_LINES_SECONDS = 3.0  # for the log's last lines, once the app has been stopped
_WAIT_SECONDS = 0.1  # between two looks for Ctrl-C while the jobs are queued
_STEP_SECONDS = 5.0  # for a step of a launch to end after Ctrl-C


class ModalBackend(Backend):
    """One app for a launch, with a function for each kind of container."""

    name = "modal"
    title = "on Modal"
    is_remote = True

    @classmethod
    def check_job(cls, job: Job) -> None:
        """Refuse what Modal would refuse late, or take silently for something else."""
        modal_app.check_resources(job)

    @classmethod
    def check_together(cls, jobs: Sequence[Job]) -> None:
        """Refuse several images, and fewer containers at a time than kinds of container."""
        modal_app.check_together(jobs)

    @classmethod
    def check_launch(cls, jobs: Sequence[Job], *, resumes: bool) -> None:
        """Refuse without an account, or where another run of this name left its files."""
        modal_app.check_account()
        if not resumes:
            modal_volume.refuse_existing(jobs)

    @classmethod
    def usd_per_hour(cls, settings: ModalJobsConf) -> tuple[float | None, float | None]:
        """Return the list prices, which depend on the GPU that is free."""
        return prices.usd_per_hour(settings)

    @classmethod
    def plan_notes(cls, jobs: Sequence[Job]) -> list[str]:
        """Return how many files of which folders are sent."""
        return [bundle.contents(list(jobs))]

    @classmethod
    def attempt_seconds(cls, settings: ModalJobsConf) -> int | None:
        """Return `timeout`, or Modal's own limit of a day."""
        return min(settings.timeout, modal_app.DAY_SECONDS)

    def submit(self, jobs: Sequence[Job], secrets: Secrets) -> None:
        """Deploy the app and queue the jobs; each is noted before anything else can go wrong.

        After a failure or Ctrl-C the app is stopped, and the manifest is as before. Where that is
        not sure, the jobs stay noted, and the error says what ends them.
        """
        launch = modal_app.Launch(
            jobs,
            secrets,
            note_app=partial(self._note_app, jobs),
            note_call=lambda job, call: self._note([{"num": job.num, "call": call}]),
        )
        with noted_interrupts() as interrupted:
            work = Work(lambda: launch.start(is_stopped=interrupted.is_set))
            while not work.wait(_WAIT_SECONDS) and not interrupted.is_set():
                pass
            if not interrupted.is_set() and work.error is None:
                return
            work.wait(_STEP_SECONDS)  # for the answer to what has just been asked of Modal
            self._withdraw(jobs, launch, work.error)

    def _withdraw(
        self, jobs: Sequence[Job], launch: modal_app.Launch, error: BaseException | None
    ) -> NoReturn:
        """Stop what was begun, and raise the error of it; without one, `UserLeft`."""
        unsure = ""
        try:
            launch.withdraw()
        except Exception as failure:
            unsure = str(failure) or type(failure).__name__
        if unsure and launch.is_queueing:
            left = (
                f"Modal has not confirmed that it is stopped ({unsure}), so jobs may be queued and "
                f"cost money; end them with: modal app stop {launch.name}"
            )
            if error is None:
                raise UserLeft(f"Stopped, but {left}")
            raise LaunchRefused(f"{error}; {left}")
        self._note([{"num": job.num, "call": None, "app": None} for job in jobs])
        if error is None:
            raise UserLeft("Stopped before the jobs were queued; nothing runs on Modal.")
        raise error

    def _note_app(self, jobs: Sequence[Job], app: modal_app.App) -> None:
        self._note(
            [
                {
                    "num": job.num,
                    "app": {"id": app.id, "name": app.name, "url": app.url},
                    "volume": modal_volume.outputs_volume(job.settings),
                    "mount": job.settings.volumes.outputs,
                    "remote": str(modal_volume.remote_folder(job)),
                    "skip": job.settings.checkpoints,
                }
                for job in jobs
            ]
        )

    def _note(self, entries: Sequence[dict[str, Any]]) -> None:
        self.manifest.update(entries)

    def attach(self, nums: Collection[int], *, is_quiet: bool = False) -> None:
        """Follow the calls of these jobs, app by app."""
        self._events: queue.Queue[Event] = queue.Queue()
        self._entries = {num: self.manifest.entry(num) for num in nums}
        by_app: dict[str, dict[int, str]] = {}
        for num, entry in self._entries.items():
            calls = by_app.setdefault(entry["app"]["id"], {})
            if entry["call"]:
                calls[num] = entry["call"]
            else:  # its launch was cut off; what it may have queued ends with the app
                self._events.put(Ended(num, JobResult("cancelled", reason="cut off")))
        self._calls = {
            app_id: Calls(app_id, calls, self._events, bring=self._bring, follows_logs=not is_quiet)
            for app_id, calls in by_app.items()
        }
        if not is_quiet:
            for url in dict.fromkeys(entry["app"]["url"] for entry in self._entries.values()):
                self._events.put(Line(None, f"Modal: {url}"))

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """Return the events of all apps so far; an event that comes ends the wait."""
        return take_all(self._events, timeout_seconds)

    def cancel(self) -> None:
        """End the attached jobs; each is interrupted first, so that it can save and report."""
        for calls in self._calls.values():
            calls.cancel()

    def reach(self, nums: Collection[int]) -> None:
        """Ask Modal for an answer of any kind."""
        answer(modal_app.hello, advice=self._advice(nums))

    def stop_command(self, nums: Collection[int]) -> str:
        """Return the command of Modal's that stops the apps of these jobs."""
        apps = (self.manifest.entry(num)["app"]["id"] for num in nums)
        return "; ".join(f"modal app stop {app_id}" for app_id in dict.fromkeys(apps))

    def close(self, *, keeps_others: bool = False) -> None:
        """Stop the apps, which ends what runs in them, and wait for the logs' last lines."""
        for app_id, calls in self._calls.items():
            try:
                if not keeps_others:
                    within(ANSWER_SECONDS, partial(modal_app.stop, app_id))
            except Exception as error:
                text = f"The app is still there ({error}); run: modal app stop {app_id}"
                self._events.put(Line(None, text))
            calls.drain(_LAST_LINES_SECONDS)

    def fetch(self, num: int, *, checkpoints: bool = False) -> list[str] | None:
        """Fetch a job's files from the volume."""
        with as_refusal(then="what was fetched so far is here"):
            return self._pull(num, checkpoints=checkpoints)

    def read_log(self, num: int) -> str:
        """Read the log from the volume until the job has come back."""
        entry = self.manifest.entry(num)
        if self.manifest.state(entry) != LAUNCHED:
            return super().read_log(num)
        self.reach([num])
        ask = partial(modal_volume.read_text, entry, LOG_FILE)
        return answer(ask, advice=self._advice([num]))

    def is_pending(self, num: int) -> bool:
        """Ask Modal whether the job's call goes on."""
        self.reach([num])
        call = self.manifest.entry(num)["call"]
        if not call:
            return False  # its launch was cut off
        ask = partial(modal_app.is_pending, call)
        return answer(ask, advice=self._advice([num]))

    def _bring(self, num: int) -> tuple[JobResult | None, bool]:
        """Fetch a job's files; return its result among them, and whether it still writes them."""
        self._pull(num)
        entry: dict[str, Any] = self._entries[num]
        result = self.manifest.result(entry)
        attempts = Ledger(self.manifest.folder_of(entry), entry["launch"]).attempts()
        return result, bool(attempts) and result is None and attempts[-1].ended is None

    def _pull(self, num: int, *, checkpoints: bool = False) -> list[str]:
        entry = self.manifest.entry(num)
        return modal_volume.pull(entry, self.manifest.folder_of(entry), checkpoints=checkpoints)

    def _advice(self, nums: Collection[int]) -> str:
        """Return what to do about these jobs while Modal does not answer."""
        going = [num for num in nums if self.manifest.state(self.manifest.entry(num)) == LAUNCHED]
        if not going:
            return "try again"
        jobs = f"{len(going)} {'job' if len(going) == 1 else 'jobs'} of {self.manifest.name}"
        stop = self.stop_command(going)
        return f"{jobs} may still run and cost money; try again, or end them with: {stop}"

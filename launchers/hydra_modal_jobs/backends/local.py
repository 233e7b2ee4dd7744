"""Jobs on this machine, each in a process of its own under a supervisor."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

from hydra_modal_jobs.backends.base import Backend, Ended, Event, Line
from hydra_modal_jobs.errors import Failure
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.jobs.result import CTRL_C, JobResult
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.events import parse_line
from hydra_modal_jobs.worker.supervisor import Retry, Supervisor

_CLOSE_SECONDS = 30.0  # for killed jobs to be gone


class LocalBackend(Backend):
    """Runs `max_parallel` jobs at a time, one if it is null.

    One at a time, a job of a single process writes to this terminal itself, as if it ran in this
    process. It is not tried again, since whoever sees it fail can start it again.
    """

    name = "local"
    title = "on this machine"

    def submit(self, jobs: Sequence[Job], secrets: Secrets) -> None:
        """Start the first jobs; the others follow as these end."""
        self._events: queue.Queue[Event] = queue.Queue()
        self._waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._secrets = secrets
        self._supervisors: list[Supervisor] = []
        self._is_cancelled = threading.Event()
        at_once = min(self.settings.max_parallel or 1, len(jobs))
        self.is_foreground = at_once == 1 and all(job.processes == 1 for job in jobs)
        for job in jobs:
            self._waiting.put(job)
        sys.stdout.flush()  # a job in the foreground writes to the same place
        self._threads = [
            threading.Thread(target=self._work, name=f"job-{number}", daemon=True)
            for number in range(at_once)
        ]
        for thread in self._threads:
            thread.start()

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """Return the events so far; an event that comes ends the wait."""
        return take_all(self._events, timeout_seconds)

    def cancel(self) -> None:
        """Interrupt the running jobs; those that wait do not begin."""
        self._is_cancelled.set()
        for supervisor in self._supervisors:
            supervisor.cancel()

    def close(self, *, keeps_others: bool = False) -> None:
        """Kill what still runs."""
        self._is_cancelled.set()
        for supervisor in self._supervisors:
            supervisor.cancel(at_once=True)
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = self._run(job)
            except Exception as error:  # a full disk, say: whoever waits must hear of it
                line = f"{type(error).__name__}: {error}"
                result = JobResult("failed", failure=Failure("user_code", line))
            self._events.put(Ended(job.num, result))

    def _run(self, job: Job) -> JobResult:
        payload = {**job.payload, "path": [entry for entry in sys.path if entry]}
        if self.is_foreground:
            payload["limits"] = {**payload["limits"], "retries": 0}
        while not self._is_cancelled.is_set():
            supervisor = Supervisor(
                payload,
                emit=partial(self._take_line, job.num),
                variables=self._secrets.values(),
                captures_output=not self.is_foreground,
            )
            self._supervisors.append(supervisor)
            if self._is_cancelled.is_set():  # since the loop began
                supervisor.cancel()
            result = supervisor.run()
            if isinstance(result, JobResult):
                return result
            assert isinstance(result, Retry)
        return JobResult("cancelled", reason=CTRL_C)

    def _take_line(self, num: int, line: str) -> None:
        parsed = parse_line(line)
        self._events.put(Line(num, parsed) if isinstance(parsed, str) else parsed)


def take_all(events: queue.Queue[Event], timeout_seconds: float) -> list[Event]:
    """Return all events of a queue, after waiting at most so long for the first."""
    taken: list[Event] = []
    try:
        if timeout_seconds > 0:
            taken.append(events.get(timeout=timeout_seconds))
        while True:
            taken.append(events.get_nowait())
    except queue.Empty:
        return taken

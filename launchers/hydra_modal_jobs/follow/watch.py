"""Follows jobs until they have ended, or until the user leaves them."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

from hydra_modal_jobs.backends.base import Backend, Ended, Event, Line
from hydra_modal_jobs.errors import JobFailed, UserLeft
from hydra_modal_jobs.files import write_atomically
from hydra_modal_jobs.follow.screen import Row, Screen
from hydra_modal_jobs.jobs.result import CTRL_C, FINAL_STATES, JobResult
from hydra_modal_jobs.paths import ERROR_FILE
from hydra_modal_jobs.worker.attempts import Ledger
from hydra_modal_jobs.worker.events import Update

_WAIT_SECONDS = 0.3  # for events, between two looks at the clock
_LONG_QUEUE_SECONDS = 600.0  # after which the user is told that no job has begun
_CANCEL_SECONDS = 60.0  # for cancelled jobs to report their end


def watch(
    backend: Backend,
    rows: Mapping[int, Row],
    *,
    keeps_others: bool = False,
    is_quiet: bool = False,
    cancels: bool = False,
    is_interrupted: bool = False,
) -> dict[int, Ended]:
    """Follow the jobs in `rows` and return how each ended, by number.

    Ctrl-C cancels them or, as the user chooses, leaves them: then it raises `UserLeft`. The backend
    is closed, with `keeps_others` in a way that other jobs of the run go on. `cancels` ends the
    jobs at once; `is_interrupted` if the user has just pressed Ctrl-C, and is asked at once.
    """
    watcher = _Watcher(backend, rows)
    try:
        backend.attach(rows, is_quiet=is_quiet)
        if cancels:
            watcher.cancel()
        ended = watcher.follow(is_interrupted=is_interrupted)
    except BaseException:
        if not backend.is_remote:
            backend.close()
        raise
    backend.close(keeps_others=keeps_others)
    watcher.take_events(0.0)
    return ended


class _Watcher:
    def __init__(self, backend: Backend, rows: Mapping[int, Row]) -> None:
        self.backend = backend
        self.manifest = backend.manifest
        self.screen = Screen(list(rows.values()), is_quiet=backend.is_foreground)
        self.ended: dict[int, Ended] = {}
        self._events: deque[Event] = deque()
        self._nums = set(rows)
        self._cancelled_at: float | None = None
        self._is_interrupted = False  # the user has pressed Ctrl-C to cancel
        self._waiting_since: float | None = time.time()  # None once the user knows

    def follow(self, *, is_interrupted: bool) -> dict[int, Ended]:
        with self.screen:
            if is_interrupted:
                self.take_events(0.0)
                self._interrupted()
            while len(self.ended) < len(self._nums):
                try:
                    self.take_events(_WAIT_SECONDS)
                    self._report_long_queue()
                    if self._cancelled_at and time.time() > self._cancelled_at + _CANCEL_SECONDS:
                        self._give_up()
                except UserLeft:
                    raise
                except KeyboardInterrupt:
                    self._interrupted()
        return self.ended

    def cancel(self) -> None:
        """End the jobs, and wait some time for each to confirm that it has ended."""
        self._cancelled_at = time.time()
        self.backend.cancel()

    def take_events(self, timeout_seconds: float) -> None:
        """Show and record what has happened."""
        if not self._events:
            self._events.extend(self.backend.events(timeout_seconds))
        while self._events:
            self._take(self._events[0])
            self._events.popleft()  # not before: Ctrl-C must not lose the end of a job

    def _take(self, event: Event) -> None:
        if isinstance(event, Line):
            if event.num in self._nums and event.num is not None:
                self.screen.log(event.num, event.text)
            else:
                self.screen.message(event.text)
        elif isinstance(event, Ended):
            self._end(event)
        elif event.num not in self.ended:
            self.screen.update(event)

    def _report_long_queue(self) -> None:
        """Report once that nothing begins: a container that cannot start is tried for ever."""
        if self._waiting_since is None or time.time() < self._waiting_since + _LONG_QUEUE_SECONDS:
            return
        self._waiting_since = None
        if all(row.begun is None for row in self.screen.rows.values()):
            self.screen.message(
                f"No job has begun after {_LONG_QUEUE_SECONDS / 60:.0f} min: there may be no such "
                "GPU free, or the container cannot start; the page above shows which"
            )

    def _end(self, event: Ended) -> None:
        """Complete and keep the result of a job."""
        entry, result = self.manifest.entry(event.num), event.result
        folder = self.manifest.folder_of(entry)
        if result.seconds is None:  # it was ended from outside and could not write its result
            ledger = Ledger(folder, entry["launch"])
            seconds = ledger.seconds(ledger.attempts())
            result.seconds = round(seconds, 2)
            result.usd = round(seconds / 3600 * entry["usd_per_hour"], 6)
            result.launch, result.ended = entry["launch"], time.time()
        if result.failure and result.failure.traceback:
            with suppress(OSError):  # a full disk must not hide the failure
                write_atomically(folder / ERROR_FILE, result.failure.traceback)
        elif result.state != "failed":
            (folder / ERROR_FILE).unlink(missing_ok=True)  # from an earlier launch
        if result.state == "cancelled" and self._is_interrupted:
            result.reason = CTRL_C
        result.write(folder)
        self.ended[event.num] = event
        row = self.screen.rows[event.num]
        self.screen.update(
            Update(event.num, result.state, result.attempts, result.status, result.usd)
        )
        row.usd = result.usd

    def _interrupted(self) -> None:
        """Answer Ctrl-C: say what stops and what goes on, and do what the user chooses."""
        states = [row.state for num, row in self.screen.rows.items() if num not in self.ended]
        count = sum(state not in FINAL_STATES for state in states)
        jobs = "1 job" if count == 1 else f"{count} jobs"
        name, command = self.manifest.name, self.backend.settings.command
        if self._cancelled_at and not self.backend.is_remote:
            raise UserLeft(f"Killed {jobs}. Continue with: {command} resume {name}")
        if self._cancelled_at or not count:
            ending = self._unconfirmed(jobs) if count else "all jobs have ended"
            raise UserLeft(f"Left; {ending}. See: {command} runs attach {name}")
        choice = self._choice(jobs)
        if choice == "watch":
            return
        if choice == "leave":
            raise UserLeft(
                f"Left {jobs} running or queued, which still cost money. Watch: {command} runs "
                f"attach {name}; end: {command} runs cancel {name}"
            )
        if not self.backend.is_foreground:
            self.screen.message(
                f"Ending {jobs}; what is saved is kept, ended jobs keep their results. "
                f"Continue later with: {command} resume {name}. (Ctrl-C again: leave at once.)"
            )
        self._is_interrupted = True
        self.cancel()

    def _choice(self, jobs: str) -> str:
        """Return whether to `cancel`, `leave` or `watch` the jobs."""
        policy = self.backend.settings.on_interrupt
        if not self.backend.is_remote:
            return "cancel"  # such jobs do not outlive this process
        if policy != "ask":
            return policy
        if not sys.stdin.isatty():
            return "cancel"
        self.screen.pause()
        try:
            place = self.backend.title[:1].upper() + self.backend.title[1:]
            self.screen.message(f"{place}, running or queued: {jobs}.")
            answer = input("  e: end them   l: leave them running   anything else: keep watching  ")
        except (KeyboardInterrupt, EOFError):
            answer = "e"
        self.screen.unpause()
        return {"e": "cancel", "l": "leave"}.get(answer.strip().lower()[:1], "watch")

    def _give_up(self) -> None:
        """Stop waiting for cancelled jobs: those elsewhere have not confirmed that they ended."""
        missing = sorted(self._nums - set(self.ended))
        if self.backend.is_remote:
            jobs = "1 job" if len(missing) == 1 else f"{len(missing)} jobs"
            raise (UserLeft if self._is_interrupted else JobFailed)(self._unconfirmed(jobs))
        for num in missing:
            self._end(Ended(num, JobResult("cancelled")))

    def _unconfirmed(self, jobs: str) -> str:
        missing = sorted(self._nums - set(self.ended))
        stop = self.backend.stop_command(missing)
        command = f"{self.backend.settings.command} runs cancel {self.manifest.name}"
        return (
            f"asked {jobs} to end, which is not confirmed yet and may still cost money; again: "
            f"{command}" + (f", or: {stop}" if stop else "")
        )

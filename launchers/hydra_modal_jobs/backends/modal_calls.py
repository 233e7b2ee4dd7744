"""Follows the calls of a Modal app: their logs and updates, then their results."""

from __future__ import annotations

import builtins
import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

import modal
from modal import exception

from hydra_modal_jobs.backends.base import Ended, Event, Line
from hydra_modal_jobs.backends.modal_errors import UNREACHABLE, ends_call
from hydra_modal_jobs.errors import Failure
from hydra_modal_jobs.jobs.result import FINAL_STATES, JobResult
from hydra_modal_jobs.retry import retrying
from hydra_modal_jobs.worker.container import AnotherAttempt
from hydra_modal_jobs.worker.events import Update, parse_line

_POLL_SECONDS = 0.5  # between two rounds of asking for results
_SILENCE_SECONDS = 10.0  # without an answer, after which that is reported
_WORKERS = 8  # fetches and cancellations at a time
_LAST_WORDS_SECONDS = 25.0  # for a cancelled job to save and report
_RETURN_SECONDS = 1.0  # from a job's report that it has ended to its result
_LOG_PAUSE_SECONDS, _LOG_ERROR_PAUSE_SECONDS = 1.0, 10.0  # before a broken stream is opened again


class Unanswered(Exception):
    """It is not known whether a call goes on: asking failed. The message is one line."""


class Calls:
    """Follows the calls, by job number, in threads of its own, which end with the process.

    `bring` fetches a job's files before its result is reported; it returns the result among them,
    and whether the job still writes.
    """

    def __init__(
        self,
        app_id: str,
        calls: dict[int, str],
        events: queue.Queue[Event],
        *,
        bring: Callable[[int], tuple[JobResult | None, bool]],
        follows_logs: bool = True,
    ) -> None:
        self._pending = dict(calls)
        self._events = events
        self._app_id = app_id
        self._numbers = {call: num for num, call in calls.items()}
        self._bring = bring
        self._closed = threading.Event()
        self._tasks: queue.Queue[Callable[[], None]] = queue.Queue()
        self._cancelled: set[int] = set()
        self._reported_end: dict[int, float] = {}  # when a job reported that it has ended
        self._followers = [self._start(self._poll_results)]
        if follows_logs:
            self._followers.append(self._start(self._follow_logs))
        for _ in range(_WORKERS):
            self._start(self._work)

    def cancel(self) -> None:
        """Cancel the calls that have not ended; each job is interrupted first."""
        for num, call in list(self._pending.items()):
            self._cancelled.add(num)
            self._tasks.put(partial(self._cancel, num, call))

    def drain(self, seconds: float) -> None:
        """Stop following, and wait so long for the log's last lines."""
        self._closed.set()
        for thread in self._followers:
            thread.join(timeout=seconds)

    def _start(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    def _poll_results(self) -> None:
        silent_since: float | None = None
        while self._pending and not self._closed.is_set():
            for num, call in self._round():
                try:
                    result = self._result(num, call)
                except Unanswered as error:
                    now = time.monotonic()
                    silent_since = silent_since or now
                    if now - silent_since > _SILENCE_SECONDS:
                        text = f"Modal does not answer ({error}); the jobs go on"
                        self._events.put(Line(None, text))
                        silent_since = float("inf")  # report it once
                    break
                silent_since = None
                if result is not None:
                    del self._pending[num]
                    self._tasks.put(partial(self._finish, num, result))
                if self._closed.is_set():
                    return
            self._closed.wait(_POLL_SECONDS)

    def _round(self) -> Iterator[tuple[int, str]]:
        """Yield every pending call; those whose job has reported its end come first."""
        waiting = dict(self._pending)
        while waiting:
            due = time.monotonic() - _RETURN_SECONDS
            ended = (num for num, at in list(self._reported_end.items()) if at < due)
            num = next(ended, None)
            if num is None:
                num = next(iter(waiting))
            self._reported_end.pop(num, None)
            waiting.pop(num, None)
            if num in self._pending:
                yield num, self._pending[num]

    def _finish(self, num: int, result: JobResult) -> None:
        """Fetch a job's files and report its end."""
        on_volume: JobResult | None = None
        begun = time.monotonic()
        while not self._closed.is_set():
            try:
                on_volume, is_writing = retrying(UNREACHABLE, unless=self._closed)(self._bring, num)
            except Exception as error:
                self._events.put(Line(num, f"its files could not be fetched: {error}"))
                break
            is_last = result.state != "cancelled" or not is_writing
            if is_last or time.monotonic() - begun > _LAST_WORDS_SECONDS:
                break
            self._closed.wait(1.0)
        # The volume's result has the costs of every attempt; Modal's tells what ended the last.
        if on_volume and (result.state != "failed" or on_volume.is_done):
            result = on_volume
        self._events.put(Ended(num, result))

    def _cancel(self, num: int, call: str) -> None:
        try:
            cancel = modal.FunctionCall.from_id(call).cancel
            retrying(UNREACHABLE, unless=self._closed)(cancel)
        except Exception as error:
            self._events.put(Line(num, f"it could not be cancelled: {error}"))

    def _result(self, num: int, call: str) -> JobResult | None:
        """Return how a call ended; None while it goes on. Raises `Unanswered`."""
        try:
            record: dict[str, Any] = modal.FunctionCall.from_id(call).get(timeout=0)
            return JobResult.from_json(record)
        except builtins.TimeoutError:
            return None
        except AnotherAttempt as error:
            kind, line = error.args
            failure = Failure(kind, f"no attempts left: {line}")
        except exception.FunctionTimeoutError as error:
            failure = Failure("timeout", str(error))
        except exception.OutputExpiredError:
            failure = Failure("refused", "Modal no longer keeps its result")
        except exception.RemoteError as error:
            if num in self._cancelled or "cancel" in str(error).lower():
                return JobResult("cancelled")
            failure = Failure("crash", str(error))
        except BaseException as error:
            if not ends_call(error):
                raise Unanswered(" ".join(str(error).split()) or type(error).__name__) from error
            failure = Failure.of(error)
        return JobResult("failed", failure=failure)

    def _follow_logs(self) -> None:
        unfinished: dict[str, str] = {}  # the last line of each call, until it ends
        traces: dict[str, list[str]] = {}
        newest: datetime | None = None
        reported = ""
        while not self._closed.is_set():
            before = newest  # after a stream that broke, the next one begins from the start
            try:
                for entry in modal.App.lookup(self._app_id).logs.stream():
                    if before is not None and entry.timestamp <= before:
                        continue
                    newest = entry.timestamp
                    call = next((i for i in entry.context_ids if i in self._numbers), None)
                    if call is None:
                        continue
                    text = unfinished.get(call, "") + entry.message
                    *lines, unfinished[call] = text.split("\n")
                    if entry.source == "stderr":
                        lines = _without_retries(lines, traces.setdefault(call, []))
                    for line in lines:
                        self._take_line(self._numbers[call], line)
                return  # the app has ended
            except UNREACHABLE:
                self._closed.wait(_LOG_PAUSE_SECONDS)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                if reason != reported:
                    text = f"The logs cannot be followed ({reason}); trying again"
                    self._events.put(Line(None, text))
                reported = reason
                self._closed.wait(_LOG_ERROR_PAUSE_SECONDS)

    def _take_line(self, num: int, line: str) -> None:
        parsed = parse_line(line)
        if isinstance(parsed, Update) and parsed.state in FINAL_STATES:
            self._reported_end[num] = time.monotonic()
        self._events.put(Line(num, parsed) if isinstance(parsed, str) else parsed)


def _without_retries(lines: list[str], trace: list[str]) -> list[str]:
    """Return the lines without the tracebacks of `AnotherAttempt`, which are no failures.

    Only the container's own code writes to its stderr; the job's is part of its log. `trace`
    holds a traceback whose end has not come yet.
    """
    kept: list[str] = []
    for line in lines:
        if trace or line.startswith("Traceback "):
            trace.append(line)
            if line.startswith((" ", "Traceback ")):
                continue
            kept += [] if AnotherAttempt.__name__ in line else trace
            trace.clear()
        else:
            kept.append(line)
    return kept

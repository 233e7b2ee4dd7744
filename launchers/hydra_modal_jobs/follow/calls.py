"""The calls of an app as they go: their logs and supervisors' words, then their results."""

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

from hydra_modal_jobs.backends.modal_app import UNREACHABLE
from hydra_modal_jobs.errors import Failure
from hydra_modal_jobs.follow.screen import ENDED
from hydra_modal_jobs.worker.container import AnotherAttempt
from hydra_modal_jobs.worker.supervisor import word_of

_PAUSE = 0.5  # seconds between two rounds of asking for results
_SILENCE = 10.0  # seconds without an answer after which that is said
_WORKERS = 8  # fetches and cancellations at a time
_LAST_WORDS = 25.0  # seconds that a cancelled job has for them
_RETURNS = 1.0  # seconds from a job's word that it has ended to its result
_TRIES = 60  # a second apart, at what must not fail because the service rests
ALL = -1  # the number of what is said of no job in particular


class Calls:
    """Watches from threads of its own, which end with the process.

    `fetch` brings a job's files here before its result; it returns the result among them, and
    whether the job is still at its last words.
    """

    def __init__(
        self,
        app_id: str,
        calls: dict[int, str],
        *,
        fetch: Callable[[int], tuple[dict[str, Any] | None, bool]],
        with_logs: bool = True,
    ) -> None:
        self.events: queue.Queue[tuple[int, str | dict[str, Any]]] = queue.Queue()
        self.pending = dict(calls)
        self._app_id = app_id
        self._numbers = {call: num for num, call in calls.items()}
        self._fetch = fetch
        self._closed = threading.Event()
        self._tasks: queue.Queue[Callable[[], None]] = queue.Queue()
        self._cancelled: set[int] = set()
        self._told: dict[int, float] = {}  # when a job said that it has ended
        self._watching = [self._begin(self._ask)]
        if with_logs:
            self._watching.append(self._begin(self._follow))
        for _ in range(_WORKERS):
            self._begin(self._work)

    def cancel(self) -> None:
        """End what has not ended; each job is interrupted first, so that it can say its last."""
        for num, call in list(self.pending.items()):
            self._cancelled.add(num)
            self._tasks.put(partial(self._cancel, num, call))

    def drain(self, seconds: float) -> None:
        """Give the last lines of the log a moment to come, once the app has been stopped."""
        self._closed.set()
        for thread in self._watching:
            thread.join(timeout=seconds)

    def _begin(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    def _ask(self) -> None:
        silent_since: float | None = None
        while self.pending and not self._closed.is_set():
            for num, call in self._round():
                try:
                    result = self._result(num, call)
                except UNREACHABLE as error:
                    now = time.monotonic()
                    silent_since = silent_since or now
                    if now - silent_since > _SILENCE:
                        self.events.put((ALL, f"Modal does not answer ({error}); the jobs go on"))
                        silent_since = float("inf")  # said
                    break
                silent_since = None
                if result is not None:
                    del self.pending[num]
                    self._tasks.put(partial(self._bring, num, result))
                if self._closed.is_set():
                    return
            self._closed.wait(_PAUSE)

    def _round(self) -> Iterator[tuple[int, str]]:
        """Every call that is pending; those whose job has said that it ended come first."""
        waiting = dict(self.pending)
        while waiting:
            due = time.monotonic() - _RETURNS
            told = next((num for num, at in list(self._told.items()) if at < due), None)
            num = next(iter(waiting)) if told is None else told
            self._told.pop(num, None)
            waiting.pop(num, None)
            if num in self.pending:
                yield num, self.pending[num]

    def _bring(self, num: int, result: dict[str, Any]) -> None:
        kept = None
        tries = 0
        begun = time.monotonic()
        while not self._closed.is_set():
            try:
                kept, is_talking = self._fetch(num)
                is_talking = is_talking and result["state"] == "cancelled"
            except Exception as error:
                tries += 1
                if tries == _TRIES or not isinstance(error, UNREACHABLE):
                    self.events.put((num, f"its files could not be fetched: {error}"))
                    break
            else:
                if not is_talking or time.monotonic() - begun > _LAST_WORDS:
                    break
            self._closed.wait(1.0)
        # The volume's word has the costs of every attempt; Modal's has what ended the last one.
        if kept and (result["state"] != "failed" or kept["state"] == "done"):
            result = kept
        self.events.put((num, {"result": result}))

    def _cancel(self, num: int, call: str) -> None:
        for _ in range(_TRIES):
            try:
                modal.FunctionCall.from_id(call).cancel()
                return
            except UNREACHABLE as error:
                said = f"could not be told to end: {error}"
            except Exception as error:
                said = f"could not be told to end: {error}"
                break
            self._closed.wait(1.0)
        self.events.put((num, said))

    def _result(self, num: int, call: str) -> dict[str, Any] | None:
        """How a call ended; None while it goes on."""
        try:
            got: dict[str, Any] = modal.FunctionCall.from_id(call).get(timeout=0)
            return got
        except builtins.TimeoutError:
            return None
        except UNREACHABLE:
            raise
        except AnotherAttempt as error:
            kind, line = error.args
            failure = Failure(kind, f"no attempts left: {line}")
        except exception.FunctionTimeoutError as error:
            failure = Failure("timeout", str(error))
        except exception.OutputExpiredError:
            failure = Failure("refused", "Modal no longer keeps its result")
        except exception.RemoteError as error:
            if num in self._cancelled or "cancel" in str(error).lower():
                return {"state": "cancelled"}
            failure = Failure("crash", str(error))
        except BaseException as error:
            failure = Failure.of(error)
        return {"state": "failed", "failure": failure.to_json()}

    def _follow(self) -> None:
        halves: dict[str, str] = {}
        traces: dict[str, list[str]] = {}
        newest: datetime | None = None
        while not self._closed.is_set():
            before = newest  # a stream that broke is followed by one that begins anew
            try:
                for entry in modal.App.lookup(self._app_id).logs.stream():
                    if before is not None and entry.timestamp <= before:
                        continue
                    newest = entry.timestamp
                    call = next((i for i in entry.context_ids if i in self._numbers), None)
                    if call is None:
                        continue
                    *lines, halves[call] = (halves.get(call, "") + entry.message).split("\n")
                    if entry.source == "stderr":
                        lines = _without_attempts(lines, traces.setdefault(call, []))
                    for line in lines:
                        num, word = self._numbers[call], word_of(line)
                        if isinstance(word, dict) and word["state"] in ENDED:
                            self._told[num] = time.monotonic()
                        self.events.put((num, word))
                return  # the app has ended
            except UNREACHABLE:
                self._closed.wait(1.0)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                self.events.put((ALL, f"The logs cannot be followed ({said}); trying again"))
                self._closed.wait(10.0)


def _without_attempts(lines: list[str], trace: list[str]) -> list[str]:
    """The lines but for tracebacks of `AnotherAttempt`; `trace` holds the one that is incomplete.

    Only the container's own code writes to its stderr: the job's is part of its log.
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

"""The calls of an app as they go: their logs and supervisors' words, then their results."""

from __future__ import annotations

import builtins
import json
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import modal
from hydra_plugins.modal_launcher._failure import Failure
from hydra_plugins.modal_launcher._supervisor import MARK
from modal import exception

_PAUSE = 0.5  # seconds between two rounds of asking for results


class Calls:
    """Watches from threads of its own; `fetch` brings a job's files here before its result."""

    def __init__(
        self,
        app_id: str,
        calls: dict[int, str],
        *,
        fetch: Callable[[int], dict[str, Any] | None],
        with_logs: bool = True,
    ) -> None:
        self.events: queue.Queue[tuple[int, str | dict[str, Any]]] = queue.Queue()
        self.pending = dict(calls)
        self._app_id = app_id
        self._numbers = {call: num for num, call in calls.items()}
        self._fetch = fetch
        self._closed = threading.Event()
        self._fetching = ThreadPoolExecutor(max_workers=4, thread_name_prefix="fetch")
        self._cancelled: set[int] = set()
        self._threads = [threading.Thread(target=self._ask, daemon=True)]
        if with_logs:
            self._threads.append(threading.Thread(target=self._follow, daemon=True))
        for thread in self._threads:
            thread.start()

    def cancel(self, *, kill: bool = False) -> None:
        """End what has not ended; each job is interrupted first, so that it can say its last."""
        for num, call in list(self.pending.items()):
            self._cancelled.add(num)
            modal.FunctionCall.from_id(call).cancel(terminate_containers=kill)

    def drain(self, seconds: float) -> None:
        """Give the last lines of the log a moment to come, once the app has been stopped."""
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=seconds)
        self._fetching.shutdown(wait=True)

    def _ask(self) -> None:
        while self.pending and not self._closed.is_set():
            for num, call in list(self.pending.items()):
                try:
                    result = self._result(num, call)
                except exception.ConnectionError:
                    continue  # the jobs go on without us; ask again
                if result is not None:
                    del self.pending[num]
                    self._fetching.submit(self._bring, num, result)
                if self._closed.is_set():
                    return
            self._closed.wait(_PAUSE)

    def _bring(self, num: int, result: dict[str, Any]) -> None:
        try:
            kept = self._fetch(num)
        except Exception as error:
            self.events.put((num, f"its files could not be fetched: {error}"))
            kept = None
        # The volume's word has the costs of every attempt; Modal's has what ended the last one.
        if kept and (result["state"] != "failed" or kept["state"] == "done"):
            result = kept
        self.events.put((num, {"result": result}))

    def _result(self, num: int, call: str) -> dict[str, Any] | None:
        """How a call ended; None while it goes on."""
        try:
            got: dict[str, Any] = modal.FunctionCall.from_id(call).get(timeout=0)
            return got
        except builtins.TimeoutError:
            return None
        except exception.ConnectionError:
            raise
        except exception.FunctionTimeoutError as error:
            failure = Failure("timeout", str(error))
        except exception.OutputExpiredError:
            failure = Failure("refused", "Modal no longer keeps its result")
        except exception.RemoteError as error:
            if num in self._cancelled or "cancel" in str(error).lower():
                return {"state": "cancelled"}
            failure = Failure("crash", str(error))
        except (Exception, SystemExit) as error:
            if type(error).__name__ == "AnotherAttempt":
                failure = Failure("timeout", f"no attempts left: {error}")
            else:
                failure = Failure.of(error)
        said = {"kind": failure.kind, "line": failure.line, "traceback": failure.traceback}
        return {"state": "failed", "failure": said}

    def _follow(self) -> None:
        halves: dict[str, str] = {}
        while not self._closed.is_set():
            try:
                for entry in modal.App.lookup(self._app_id).logs.stream():
                    call = next((i for i in entry.context_ids if i in self._numbers), None)
                    if call is None:
                        continue
                    *lines, halves[call] = (halves.get(call, "") + entry.message).split("\n")
                    for line in lines:
                        self.events.put((self._numbers[call], _word(line)))
                return  # the app has ended
            except Exception:  # the stream broke: the next one begins where the service lets it
                time.sleep(1.0)


def _word(line: str) -> str | dict[str, Any]:
    if not line.startswith(MARK):
        return line
    try:
        words: dict[str, Any] = json.loads(line[len(MARK) :])
        return words
    except ValueError:
        return line

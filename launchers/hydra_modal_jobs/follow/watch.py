"""Follows a run's jobs until they have ended, or until the person says to leave them."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from hydra_modal_jobs.backends.local import Pool
from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.files import json_lines, write, write_json
from hydra_modal_jobs.follow.screen import ENDED, Row, Screen
from hydra_modal_jobs.jobs.job import CONTROL
from hydra_modal_jobs.manifest import RunManifest, name_of
from hydra_modal_jobs.worker.supervisor import seconds_of

_LONG = 600.0  # seconds that jobs may be queued before that is said
_CANCEL_PATIENCE = 60.0  # seconds for jobs to say their last


INTERRUPTED = "Ctrl-C"  # the reason of a job that was cancelled by it


class Left(KeyboardInterrupt):
    """The person has left; the jobs go on, or end by themselves."""


def watch(
    record: RunManifest,
    rows: dict[int, Row],
    settings: ModalJobsConf,
    *,
    pool: Pool | None = None,
    keep_app: bool = False,
    quiet: bool = False,
) -> dict[int, dict[str, Any]]:
    """The results of the jobs in `rows` by number: of a pool here, else of the calls on Modal.

    The app is taken away when they have ended, unless other jobs need it.
    """
    entries = {entry["num"]: entry for entry in record.jobs if entry["num"] in rows}
    watcher = _Watcher(record, entries, rows, settings)
    if pool is not None:
        return watcher.follow([pool])
    from hydra_modal_jobs.backends import modal_app as _modal
    from hydra_modal_jobs.follow.calls import Calls

    by_app: dict[str, dict[int, str]] = {}
    for num, entry in entries.items():
        by_app.setdefault(entry["app"]["id"], {})[num] = entry["call"]
    calls = [
        Calls(app, own, fetch=watcher.fetch, with_logs=not quiet) for app, own in by_app.items()
    ]
    for url in {entry["app"]["url"] for entry in entries.values()} if not quiet else ():
        watcher.screen.say(f"Modal: {url}")
    results = watcher.follow(calls)
    for app_id, each in zip(by_app, calls, strict=True):
        try:
            if not keep_app:
                _modal.stop(app_id)
        except _modal.UNREACHABLE as error:
            watcher.screen.say(f"The app is still there ({error}); run: modal app stop {app_id}")
        each.drain(3.0)
    watcher.last_words(calls)
    return results


def fetch(record: RunManifest, entry: dict[str, Any], *, checkpoints: bool) -> list[str]:
    """Bring a job's files from its volume into its folder here. Returns the names fetched."""
    from hydra_modal_jobs.backends import modal_app as _modal

    return _modal.pull(
        entry["volume"],
        PurePosixPath(entry["remote"]),
        record.folder_of(entry),
        skip=None if checkpoints else entry["skip"],
        mount=entry["mount"],
    )


class _Watcher:
    def __init__(
        self,
        record: RunManifest,
        entries: dict[int, dict[str, Any]],
        rows: dict[int, Row],
        settings: ModalJobsConf,
    ) -> None:
        self.record = record
        self.entries = entries
        self.settings = settings
        self.screen = Screen(list(rows.values()))
        self.results: dict[int, dict[str, Any]] = {}
        self._cancelled_at: float | None = None
        self._begun_at: float | None = time.time()  # None once a long wait has been told

    def follow(self, sources: Sequence[Any]) -> dict[int, dict[str, Any]]:
        with self.screen:
            while len(self.results) < len(self.entries):
                try:
                    for source in sources:
                        self._take(source)
                    if len(sources) > 1:
                        time.sleep(0.1)
                    self._tell_of_waiting()
                    if self._cancelled_at and time.time() > self._cancelled_at + _CANCEL_PATIENCE:
                        self._give_up()
                except KeyboardInterrupt:
                    self._interrupted(sources)
        return self.results

    def _tell_of_waiting(self) -> None:
        """A container that cannot start is tried for ever, and leaves no word but on its page."""
        if self._begun_at is None or time.time() < self._begun_at + _LONG:
            return
        self._begun_at = None
        if all(row.began is None for row in self.screen.rows.values()):
            self.screen.say(
                f"No job has begun after {_LONG / 60:.0f} min: there may be no such GPU free, or "
                "the container cannot start; the page above shows which"
            )

    def fetch(self, num: int) -> tuple[dict[str, Any] | None, bool]:
        """The job's result among its files, and whether it has an attempt without an end."""
        entry = self.entries[num]
        fetch(self.record, entry, checkpoints=False)
        result = self.record.result(entry)
        attempts = self._attempts(entry)
        return result, bool(attempts) and result is None and "ended" not in attempts[-1]

    def _attempts(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        lines = json_lines(self.record.folder_of(entry) / CONTROL / "attempts.jsonl")
        return [line for line in lines if line["launch"] == entry["launch"]]

    def last_words(self, sources: Sequence[Any]) -> None:
        for source in sources:
            self._take(source, wait=0.0)

    def _take(self, source: Any, wait: float = 0.3) -> None:
        """Whatever the source has said since."""
        while True:
            try:
                num, said = source.events.get(timeout=wait) if wait else source.events.get_nowait()
            except queue.Empty:
                return
            wait = 0.0
            if isinstance(said, str):
                if num in self.entries:
                    self.screen.log(num, said)
                else:
                    self.screen.say(said)
            elif "result" in said:
                self._ended(num, said["result"])
            elif num not in self.results:
                self.screen.event(num, said)

    def _ended(self, num: int, result: dict[str, Any]) -> None:
        entry = self.entries[num]
        folder = self.record.folder_of(entry)
        if "seconds" not in result:  # it was ended from outside and could not write its own
            seconds = sum(seconds_of(self._attempts(entry), folder / CONTROL))
            usd = seconds / 3600 * entry["usd_per_hour"]
            result |= {"seconds": round(seconds, 2), "usd": round(usd, 6)}
            result |= {"launch": entry["launch"], "shape": "", "ended": time.time()}
        error, trace = folder / "error.txt", result.get("failure", {}).get("traceback")
        if trace:
            write(error, trace)
        elif result["state"] != "failed":
            error.unlink(missing_ok=True)  # of a launch before this one
        if result["state"] == "cancelled" and self._cancelled_at:
            result["reason"] = INTERRUPTED
        write_json(folder / CONTROL / "result.json", result)
        self.results[num] = result
        row = self.screen.rows[num]
        words = {"state": result["state"], "attempt": result.get("attempts", row.attempt)}
        status = result.get("status") or row.status
        self.screen.event(num, {**words, "status": status, "usd": result["usd"]})

    def _interrupted(self, sources: Sequence[Any]) -> None:
        """Ctrl-C: say what stops and what goes on, and do as told."""
        states = [row.state for num, row in self.screen.rows.items() if num not in self.results]
        count = sum(state not in ENDED for state in states)
        going = "1 job" if count == 1 else f"{count} jobs"
        name, command = name_of(self.record.folder), self.settings.command
        if self._cancelled_at or not count:
            told = f"told {going} to end" if count else "all jobs have ended"
            raise Left(f"Left; {told}. See: {command} runs attach {name}")
        choice = self._choice(going, on_modal=not isinstance(sources[0], Pool))
        if choice == "watch":
            return
        if choice == "leave":
            raise Left(
                f"Left {going} running or queued, at its cost. Watch: {command} runs attach "
                f"{name}; end: {command} runs cancel {name}"
            )
        self.screen.say(
            f"Ending {going}; what is saved is kept, ended jobs keep their results. "
            f"Go on later with: {command} resume {name}. (Ctrl-C again: leave at once.)"
        )
        self._cancelled_at = time.time()
        for source in sources:
            source.cancel()

    def _choice(self, going: str, *, on_modal: bool) -> str:
        policy = self.settings.on_interrupt
        if not on_modal:
            return "cancel"  # nothing here outlives this process
        if policy != "ask":
            return policy
        if not sys.stdin.isatty():
            return "cancel"
        self.screen.pause()
        try:
            self.screen.say(f"On Modal, running or queued: {going}.")
            said = input("  e: end them   l: leave them running   anything else: go on watching  ")
        except (KeyboardInterrupt, EOFError):
            said = "e"
        self.screen.go_on()
        return {"e": "cancel", "l": "leave"}.get(said.strip().lower()[:1], "watch")

    def _give_up(self) -> None:
        for num in self.entries:
            if num not in self.results:
                self._ended(num, {"state": "cancelled"})

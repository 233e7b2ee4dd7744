"""One attempt at a job, in a process of its own: watched, recorded, and stopped when it must be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra_modal_jobs.errors import RETRIED, Failure
from hydra_modal_jobs.files import last_json_line, read_json, write_json
from hydra_modal_jobs.jobs.result import CTRL_C, JobResult, Outcome
from hydra_modal_jobs.paths import ALIVE_FILE, ERROR_FILE, LOG_FILE
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.attempts import Ledger, crashes_in_a_row, may_try_again
from hydra_modal_jobs.worker.events import Update
from hydra_modal_jobs.worker.process import JobProcess, job_command

STOP_VARIABLE = "HYDRA_JOB_STOP"  # a file; once it exists, the job ends after its next checkpoint
SOURCE_VARIABLE = "HYDRA_JOB_SOURCE"  # JSON: the commit of the source that was sent

_FILES_POLL_SECONDS = 1.0  # the job's files may lie on a network volume
_HEARTBEAT_SECONDS = 20.0  # between updates while nothing is new
_CHECKPOINT_WAIT_SECONDS = 900.0  # for the checkpoint after which a job is to stop
_LOG_TAIL_CHARACTERS = 8000  # of the log, kept with the failure of a lost container


@dataclass(frozen=True)
class Retry:
    """The job needs another attempt; the kind and the line of why this one ended."""

    kind: str
    line: str


class Supervisor:
    """Runs one attempt at the job of a payload.

    `emit` gets the lines of output and the updates. `commit` makes files durable. `variables` are
    added to the job's environment. With `captures_output=False` the job writes to this process's
    own output, no log is kept, and what ends the job is left to the caller to print.
    """

    def __init__(
        self,
        payload: dict[str, Any],
        *,
        emit: Callable[[str], None],
        commit: Callable[[], None] = lambda: None,
        variables: Mapping[str, str] | None = None,
        captures_output: bool = True,
    ) -> None:
        self.payload = payload
        self.limits: dict[str, Any] = payload["limits"]
        self.folder = Path(payload["dir"]) / payload["subdir"]
        self.ledger = Ledger(self.folder, payload["launch"])
        self.captures_output = captures_output
        self._variables = dict(variables or {})
        names = payload["secret_names"]
        given = {name: value for name, value in self._variables.items() if name in names}
        self.secrets = Secrets({**Secrets.from_environment(names).values(), **given})
        self._emit = emit
        self._commit = commit
        self._process: JobProcess | None = None
        self._is_cancelled = False
        self._stop_file = Path()
        self._stop_asked_at: float | None = None
        self._files_read_at = 0.0
        self._checkpoint_files: set[tuple[str, float]] = set()
        self._has_uncommitted = False
        self._status: dict[str, Any] = {}
        self._updated_at = 0.0

    def run(self) -> JobResult | Retry:
        """Return the job's result, or `Retry` if it needs another attempt.

        A result that an earlier attempt of this launch left is returned as it is. A
        `KeyboardInterrupt` (a preemption) ends the job's processes and passes through.
        """
        earlier = JobResult.read(self.folder)
        if earlier and earlier.launch == self.payload["launch"]:
            return earlier
        attempts = self.ledger.attempts()
        self.earlier_seconds = self.ledger.seconds(attempts)
        self.attempt = 1 + max((attempt.number for attempt in attempts), default=0)
        self.begun = time.time()
        crashes = crashes_in_a_row(attempts, checkpoints=self._fingerprint())
        if not may_try_again(crashes, retries=self.limits["retries"]):
            line = f"its container was lost with nothing new saved ({crashes} in a row)"
            return self._end(_failed(Failure("crash", line, _tail_of(self.folder / LOG_FILE))))
        self.ledger.begin(
            self.attempt, at=self.begun, checkpoints=self._fingerprint(), gpu=_gpu_name()
        )
        self._report("running")
        self._commit()
        try:
            result = self._attempt()
        except BaseException as stop:
            if self._process is not None:
                self._process.interrupt()
            if type(stop).__name__ == "InputCancellation":  # Modal's: the call was cancelled
                self._end(JobResult("cancelled"))
            else:
                self._record_end(type(stop).__name__)
                self._commit()
            raise
        if isinstance(result, JobResult) and result.failure and result.failure.kind in RETRIED:
            failures = sum(attempt.ended_as in RETRIED for attempt in attempts)
            if failures < self.limits["retries"]:
                result = Retry(result.failure.kind, result.failure.line)
        if isinstance(result, Retry):
            ended_as = "out of time" if result.kind == "timeout" else result.kind
            self._record_end(ended_as)
            self._report(f"again ({ended_as})")
            self._commit()
            return result
        return self._end(result)

    def cancel(self, *, at_once: bool = False) -> None:
        """End the job from another thread: by an interrupt and, `at_once` or in vain, by a kill."""
        self._is_cancelled = True
        if at_once and self._process is not None:
            self._process.kill()

    def _attempt(self) -> JobResult | Retry:
        self._checkpoint_files = self._list_checkpoints()
        (self.folder / ERROR_FILE).unlink(missing_ok=True)
        # Not in the job's folder, whose disk may be full.
        with TemporaryDirectory(prefix="hydra-job-") as temporary:
            exchange = Path(temporary)
            # Whoever started the launch may have its own file that asks all jobs to stop.
            self._stop_file = Path(os.environ.get(STOP_VARIABLE) or exchange / "stop")
            self._process = self._start_process(exchange / "attempt.json")
            while self._process.is_running():
                self._watch()
            status = self._process.finish()
            stop = read_json(self._stop_file)
            outcome = Outcome.read(exchange / "outcome.json")
        return self._result(outcome, status, (stop or {}).get("reason"))

    def _result(
        self, outcome: Outcome | None, status: int, stopped_for: str | None
    ) -> JobResult | Retry:
        """Return what follows from the end of the job's process."""
        is_interrupted = outcome is not None and outcome.state == "interrupted"
        is_done = outcome is not None and outcome.state == "done"
        last_words = outcome.last_words if outcome is not None else ""
        if (self._is_cancelled and not is_done) or (is_interrupted and not self.captures_output):
            return JobResult("cancelled", reason=CTRL_C, last_words=last_words)
        if stopped_for and not is_done:
            if stopped_for == "time":
                return Retry("timeout", "out of time")
            failure = outcome.failure if outcome is not None else None
            return JobResult("stopped", reason=stopped_for, failure=failure)
        if outcome is None or is_interrupted:
            return _failed(Failure.of_exit(status, self._process.tail if self._process else ""))
        return JobResult(
            outcome.state,
            failure=outcome.failure,
            returned=outcome.returned,
            working_dir=outcome.working_dir,
        )

    def _start_process(self, attempt: Path) -> JobProcess:
        resumes = self.attempt > 1 or self.payload["resume"]
        resume_key = self.payload["resume_key"] if resumes else None
        more = {"resume_key": resume_key, "prints_end": self.captures_output}
        write_json(attempt, {**self.payload, **more})
        environment = {**os.environ, **self._variables}
        environment[STOP_VARIABLE] = str(self._stop_file)
        environment[SOURCE_VARIABLE] = json.dumps(self.payload.get("source"))
        return JobProcess(
            job_command(attempt, processes=self.limits["processes"]),
            environment=environment,
            log=self.folder / LOG_FILE if self.captures_output else None,
            secrets=self.secrets,
            emit=self._emit,
        )

    def _watch(self) -> None:
        """Stop a job that is out of time or money, and read its files now and then."""
        assert self._process is not None
        now = time.time()
        if now - self._files_read_at > _FILES_POLL_SECONDS:
            self._files_read_at = now
            self._read_files(now)
        seconds = now - self.begun
        if self._is_cancelled:
            self._process.interrupt()
        elif self._stop_asked_at is not None:
            if now - self._stop_asked_at > _CHECKPOINT_WAIT_SECONDS:
                self._process.interrupt()
        elif self.limits["seconds"] and seconds > self.limits["seconds"] - _margin(self.limits):
            self._ask_to_stop("time")
        elif self.limits["usd"] is not None and self._usd(now) >= self.limits["usd"]:
            self._ask_to_stop("budget")

    def _read_files(self, now: float) -> None:
        """Commit new checkpoints, and report new metrics."""
        files = self._list_checkpoints()
        if self._has_uncommitted and files == self._checkpoint_files:  # written to their end
            self._commit()
        self._checkpoint_files, self._has_uncommitted = files, files != self._checkpoint_files
        status = self._newest_status()
        if status != self._status or now - self._updated_at > _HEARTBEAT_SECONDS:
            with suppress(OSError):  # a full disk is for the job to report
                write_json(self.folder / ALIVE_FILE, now)
            self._status, self._updated_at = status, now
            self._report("running")

    def _newest_status(self) -> dict[str, Any]:
        metrics = last_json_line(self.folder / self.payload["metrics"]) or {}
        return {key: metrics.get(key) for key in self.payload["show"]}

    def _ask_to_stop(self, reason: str) -> None:
        self._stop_asked_at = time.time()
        write_json(self._stop_file, {"reason": reason})
        self._report("stopping")

    def _end(self, result: JobResult) -> JobResult:
        now = time.time()
        if last_json_line(self.folder / self.payload["metrics"]):
            self._status = self._newest_status()
        result.launch = self.payload["launch"]
        result.attempts = self.attempt
        result.seconds = round(self.earlier_seconds + now - self.begun, 2)
        result.usd = self._usd(now)
        result.cost_key = self.payload["shape"]
        result.status = self._status
        result.link = self._process.link if self._process else ""
        result.ended = now
        try:
            self._record_end(result.state)
        except OSError:
            if result.is_done:
                raise
        result.write(self.folder)
        self._report(result.state)
        self._commit()
        return result

    def _record_end(self, ended_as: str) -> None:
        checkpoints = self._fingerprint()
        self.ledger.end(self.attempt, at=time.time(), ended_as=ended_as, checkpoints=checkpoints)

    def _usd(self, now: float) -> float:
        hours = (self.earlier_seconds + now - self.begun) / 3600
        return round(hours * float(self.limits["usd_per_hour"]), 6)

    def _list_checkpoints(self) -> set[tuple[str, float]]:
        """Return the path and the time of each file of a checkpoint."""
        pattern = self.payload["checkpoints"]
        if not pattern:
            return set()
        files = set()
        # A bare ** matches folders only.
        for path in self.folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern):
            try:
                if path.is_file():
                    files.add((str(path), path.stat().st_mtime))
            except OSError:
                continue  # an old checkpoint that is just being deleted
        return files

    def _fingerprint(self) -> str:
        """Return a hash of the checkpoints' names; their times differ between machines."""
        names = sorted(path for path, _ in self._list_checkpoints())
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]

    def _report(self, state: str) -> None:
        update = Update(
            num=self.payload["num"],
            state=state,
            attempt=self.attempt,
            status=self._status,
            usd=self._usd(time.time()),
            link=self._process.link if self._process else "",
        )
        self._emit(update.to_line())


def _failed(failure: Failure) -> JobResult:
    return JobResult("failed", failure=failure)


def _margin(limits: dict[str, Any]) -> float:
    """Return how many seconds before the end of an attempt its job is asked to stop."""
    seconds = float(limits["seconds"])
    return min(900.0, max(0.1 * seconds, min(2.0, 0.5 * seconds)))


def _tail_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
    except OSError:
        return ""


def _gpu_name() -> str | None:
    """Return the name of the machine's first GPU, None if it has none."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return output.partition("\n")[0].strip() or None

"""The process of an attempt: started, read, interrupted and killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.events import MARK
from hydra_modal_jobs.worker.output import read_lines

_GRACE_SECONDS = 20.0  # from an interrupt to a kill; a preempted container has 30
_POLL_SECONDS = 0.25
_LAST_LINES_SECONDS = 5.0  # for the output of a process that has ended
_TAIL_CHARACTERS = 8000  # of the output, to classify a crash
_TRACKER_LINK = re.compile(r"https?://\S+/runs/\w+")  # as W&B prints it


class JobProcess:
    """A job's process and all that it starts, which form one group.

    Its output goes line by line to `log` and to `emit`, without secret values; with `log` None it
    goes to this process's output. `tail` holds the end of the output, `link` the tracker's page of
    the run if one was printed.
    """

    def __init__(
        self,
        command: list[str],
        *,
        environment: Mapping[str, str],
        log: Path | None,
        secrets: Secrets,
        emit: Callable[[str], None],
    ) -> None:
        self.tail = ""
        self.link = ""
        self._log = log
        self._secrets = secrets
        self._emit = emit
        self._is_killed = False
        # The process unblocks the interrupt when it can answer it in one line.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-u", *command],
                stdout=subprocess.PIPE if log else None,
                stderr=subprocess.STDOUT if log else None,
                stdin=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        if log:
            self._reader.start()

    def is_running(self, wait_seconds: float = _POLL_SECONDS) -> bool:
        """Return whether the process runs, after waiting at most so long for its end."""
        try:
            self._process.wait(timeout=wait_seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def interrupt(self) -> None:
        """Send Ctrl-C to every process of the group, and kill those that stay."""
        if self._process.poll() is not None:
            return
        deadline = time.monotonic() + _GRACE_SECONDS
        if not self._is_killed:
            self._signal(signal.SIGINT)
        with suppress(KeyboardInterrupt):
            while not self._is_killed and time.monotonic() < deadline:
                if not self.is_running():
                    break
        self._signal(signal.SIGKILL)
        self._process.wait()

    def kill(self) -> None:
        """Kill the group; an `interrupt` in another thread does not wait any longer."""
        self._is_killed = True
        self._signal(signal.SIGKILL)

    def finish(self) -> int:
        """Kill what a process that has ended left behind, and return its exit status."""
        self._signal(signal.SIGKILL)
        if self._log:
            self._reader.join(timeout=_LAST_LINES_SECONDS)
        return self._process.wait()

    def _read_output(self) -> None:
        assert self._process.stdout is not None and self._log is not None
        with self._log.open("a") as log:
            for raw in read_lines(self._process.stdout):
                line = self._secrets.redact(raw).lstrip(MARK)  # only updates begin with it
                self.tail = f"{self.tail}{line}\n"[-_TAIL_CHARACTERS:]
                if match := _TRACKER_LINK.search(line):
                    self.link = match[0]
                log.write(f"{line}\n")
                log.flush()
                self._emit(line)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def job_command(attempt: Path, *, processes: int) -> list[str]:
    """Return the arguments of Python that run the job of an `attempt.json`."""
    package = "hydra_modal_jobs.worker"
    job = ["-m", f"{package}.run_job", str(attempt)]
    if processes == 1:
        return job
    each = ["--standalone", f"--nproc-per-node={processes}", "--module"]
    return ["-m", f"{package}.torchrun", *each, *job[1:]]

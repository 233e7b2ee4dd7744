"""One attempt at a job in a process of its own: watched, recorded, and stopped when it must be."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra_modal_jobs.errors import RETRIED, Failure
from hydra_modal_jobs.files import (
    append_json,
    json_lines,
    last_json_line,
    read_json,
    write,
    write_json,
)
from hydra_modal_jobs.jobs.job import CONTROL
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.output import lines

# A line of a job's output that begins so is the supervisor's word to whoever watches.
MARK = "\x1e"
STOP_VARIABLE = "HYDRA_JOB_STOP"  # a job ends after its next checkpoint once this file exists
SOURCE_VARIABLE = "HYDRA_JOB_SOURCE"  # the commit of the source that was sent, as JSON

_LINK = re.compile(r"https?://\S+/runs/\w+")  # of a tracker, such as W&B prints

_MOST_CRASHES = 20  # of a job, whatever it has saved between them
_POLL = 0.25  # seconds
_LOOK = 1.0  # seconds between looks at its files, which lie on a volume
_BEAT = 20.0  # seconds between words while nothing is new
_GRACE = 20.0  # seconds from an interrupt to a kill; a preempted container has 30
_PATIENCE = 900.0  # seconds that a job has for the checkpoint after which it is to stop


class Supervisor:
    """`emit` takes lines of output, `commit` makes what was written last."""

    def __init__(
        self,
        payload: dict[str, Any],
        *,
        emit: Callable[[str], None],
        commit: Callable[[], None] = lambda: None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.payload = payload
        self.limits: dict[str, Any] = payload["limits"]
        self.folder = Path(payload["dir"]) / payload["subdir"]
        self.control = self.folder / CONTROL
        self.error = self.folder / "error.txt"
        self.secrets = Secrets.here([*payload["secret_names"], *(variables or {})])
        if variables:
            self.secrets = Secrets({**self.secrets.values(), **variables})
        self._emit = emit
        self._commit = commit
        self._variables = variables or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._asked_at = 0.0
        self._tail = ""
        self._looked_at = 0.0
        self._kept: set[tuple[str, float]] = set()
        self._changed = False
        self._said: tuple[dict[str, Any], float] = ({}, 0.0)
        self._link = ""

    def run(self) -> dict[str, Any]:
        """The job's result, with `again: True` where another attempt is called for.

        A result that an earlier attempt left is returned as it is. `KeyboardInterrupt` (a
        preemption) ends the job's processes and passes through.
        """
        launch = self.payload["launch"]
        earlier = read_json(self.control / "result.json")
        if earlier and earlier.get("launch") == launch:
            return dict(earlier)
        records = [r for r in json_lines(self.control / "attempts.jsonl") if r["launch"] == launch]
        self.spent = sum(seconds_of(records, self.control))
        self.attempt = 1 + max((record["attempt"] for record in records), default=0)
        self.begun = time.time()
        crashes = _crashes(records, saved=self._saved())
        if crashes > min(self.limits["retries"], _MOST_CRASHES):
            line = f"its container was lost with nothing new saved ({crashes} in a row)"
            log = _tail_of(self.folder / "log.txt")
            return self._end(_failed(Failure("crash", line, log)))
        self._record({"begun": self.begun, "gpu": _gpu_name()})
        self._say("running")
        self._commit()
        try:
            result = self._attempt()
        except BaseException as stop:
            self._interrupt()
            if type(stop).__name__ == "InputCancellation":  # Modal's word for: not again
                self._end({"state": "cancelled"})
            else:
                self._record({"ended": time.time(), "as": type(stop).__name__})
                self._commit()
            raise
        failures = sum(record.get("as") in RETRIED for record in records)
        again = result.pop("again", False)
        if result["state"] == "failed" and result["failure"]["kind"] in RETRIED:
            again = failures < self.limits["retries"]
        if again:
            kind = result["failure"]["kind"] if "failure" in result else "out of time"
            self._record({"ended": time.time(), "as": kind})
            self._say(f"again ({kind})")
            self._commit()
            return {**result, "again": True}
        return self._end(result)

    def cancel(self) -> None:
        """End the job from another thread."""
        self._cancelled = True

    def _attempt(self) -> dict[str, Any]:
        self._kept = self._checkpoints()
        for path in (self.control / "outcome.json", self.control / "stop", self.error):
            path.unlink(missing_ok=True)
        resumes = self.attempt > 1 or self.payload["resume"]
        document = {**self.payload, "resume_key": self.payload["resume_key"] if resumes else None}
        write_json(self.control / "attempt.json", document)
        environment = {**os.environ, **self._variables}
        environment[STOP_VARIABLE] = str(self.control / "stop")
        environment[SOURCE_VARIABLE] = json.dumps(self.payload.get("source"))
        self._process = subprocess.Popen(
            self._command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # its whole group is ended with it
        )
        reader = threading.Thread(target=self._read_output, daemon=True)
        reader.start()
        while self._process.poll() is None:
            self._watch()
            time.sleep(_POLL)
        _signal_group(self._process, signal.SIGKILL)  # what it has left behind
        reader.join(timeout=5)
        status = self._process.returncode
        asked = read_json(self.control / "stop")
        outcome: dict[str, Any] | None = read_json(self.control / "outcome.json")
        if self._cancelled:
            outcome = _failed(Failure("cancelled", "cancelled"))
        if outcome is None:
            outcome = _failed(Failure.of_exit(status, self._tail))
        if asked and outcome["state"] == "failed" and not self._cancelled:
            if asked["reason"] == "time":
                return {"state": "stopped", "again": True}
            outcome["state"] = "stopped"
            outcome["reason"] = asked["reason"]
        return outcome

    def _command(self) -> list[str]:
        package = "hydra_modal_jobs.worker"
        job = [f"{package}.run_job", str(self.control / "attempt.json")]
        count = self.limits["processes"]
        if count > 1:
            each = ["--standalone", f"--nproc-per-node={count}", "--module"]
            job = [f"{package}.torchrun", *each, *job]
        return [sys.executable, "-u", "-m", *job]

    def _read_output(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with (self.folder / "log.txt").open("a") as log:
            for raw in lines(self._process.stdout):
                line = self.secrets.redact(raw).lstrip(MARK)  # which is not the job's to use
                self._tail = f"{self._tail}{line}\n"[-8000:]
                if found := _LINK.search(line):
                    self._link = found[0]
                log.write(f"{line}\n")
                log.flush()
                self._emit(line)

    def _watch(self) -> None:
        """Stop a job that is out of time or money; look at what it writes now and then."""
        now = time.time()
        if now - self._looked_at > _LOOK:
            self._looked_at = now
            self._look(now)
        seconds = now - self.begun
        if self._cancelled:
            self._interrupt()
        elif self._asked_at:
            if now - self._asked_at > _PATIENCE:
                self._interrupt()
        elif self.limits["seconds"] and seconds > self.limits["seconds"] - _margin(self.limits):
            self._ask("time")
        elif self.limits["usd"] is not None and self._cost(now) >= self.limits["usd"]:
            self._ask("budget")

    def _look(self, now: float) -> None:
        """Keep new checkpoints, and tell of new metrics."""
        kept = self._checkpoints()
        if self._changed and kept == self._kept:  # written to its end
            self._commit()
        self._kept, self._changed = kept, kept != self._kept
        metrics = last_json_line(self.folder / self.payload["metrics"])
        status = {key: (metrics or {}).get(key) for key in self.payload["show"]}
        before, at = self._said
        if status != before or now - at > _BEAT:
            write(self.control / "alive", json.dumps(now))
            self._say("running", status)
            self._said = (status, now)

    def _ask(self, reason: str) -> None:
        self._asked_at = time.time()
        write_json(self.control / "stop", {"reason": reason})
        self._say("stopping")

    def _interrupt(self) -> None:
        """Ctrl-C to every process of the job, and the end of those that stay."""
        if self._process is None or self._process.poll() is not None:
            return
        _signal_group(self._process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.wait(timeout=_GRACE)
        _signal_group(self._process, signal.SIGKILL)
        self._process.wait()

    def _end(self, result: dict[str, Any]) -> dict[str, Any]:
        now = time.time()
        result |= {
            "launch": self.payload["launch"],
            "attempts": self.attempt,
            "seconds": round(self.spent + now - self.begun, 2),
            "usd": self._cost(now),
            "shape": self.payload["shape"],
            "status": self._said[0],
            "link": self._link,
            "ended": now,
        }
        last = last_json_line(self.folder / self.payload["metrics"])
        if last:
            result["status"] = {key: last.get(key) for key in self.payload["show"]}
        self._record({"ended": now, "as": result["state"]})
        write_json(self.control / "result.json", result)
        self._say(result["state"], result["status"])
        self._commit()
        return result

    def _cost(self, now: float) -> float:
        hours = (self.spent + now - self.begun) / 3600
        return round(hours * float(self.limits["usd_per_hour"]), 6)

    def _checkpoints(self) -> set[tuple[str, float]]:
        pattern = self.payload["checkpoints"]
        if not pattern:
            return set()
        found = set()
        # A bare ** is folders only.
        for path in self.folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern):
            try:
                if path.is_file():
                    found.add((str(path), path.stat().st_mtime))
            except OSError:
                continue  # an old one that goes
        return found

    def _record(self, entry: dict[str, Any]) -> None:
        head = {"launch": self.payload["launch"], "attempt": self.attempt}
        append_json(self.control / "attempts.jsonl", {**head, **entry, "saved": self._saved()})

    def _saved(self) -> str:
        """Another word as soon as there is another checkpoint; times differ between machines."""
        names = sorted(path for path, _ in self._checkpoints())
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]

    def _say(self, state: str, status: dict[str, Any] | None = None) -> None:
        words = {
            "num": self.payload["num"],
            "state": state,
            "attempt": self.attempt,
            "status": status or {},
            "usd": self._cost(time.time()),
            "link": self._link,
        }
        self._emit(MARK + json.dumps(words))


def word_of(line: str) -> str | dict[str, Any]:
    """A line of output as its reader takes it: the supervisor's word, or the job's line."""
    if not line.startswith(MARK):
        return line
    try:
        words: dict[str, Any] = json.loads(line[len(MARK) :])
        return words
    except ValueError:
        return line


def seconds_of(records: list[dict[str, Any]], control: Path) -> list[float]:
    """How long each attempt of a ledger took; a lost one, until it was last heard of."""
    ended = {record["attempt"]: record["ended"] for record in records if "ended" in record}
    alive = read_json(control / "alive") or 0.0
    return [
        max(0.0, ended.get(record["attempt"], max(alive, record["begun"])) - record["begun"])
        for record in records
        if "begun" in record
    ]


def _crashes(records: list[dict[str, Any]], *, saved: str) -> int:
    """Attempts in a row, the last one included, that left no word and no new checkpoint."""
    crashes = 0
    ended = {record["attempt"] for record in records if "ended" in record}
    begun = [record for record in records if "begun" in record]
    after = [*(record["saved"] for record in begun[1:]), saved]
    for record, then in zip(begun, after, strict=False):
        moved = then != record["saved"]
        crashes = 0 if record["attempt"] in ended or moved else crashes + 1
    lost = len(begun) - len(ended)
    return lost if lost > _MOST_CRASHES else crashes


def _failed(failure: Failure) -> dict[str, Any]:
    return {"state": "failed", "failure": failure.to_json()}


def _margin(limits: dict[str, Any]) -> float:
    """Seconds before the end of an attempt from which its job is asked to stop."""
    seconds = float(limits["seconds"])
    return min(900.0, max(0.1 * seconds, min(2.0, 0.5 * seconds)))


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-4000:]
    except OSError:
        return ""


def _gpu_name() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.partition("\n")[0].strip() or None

"""Jobs on this machine: in this very process, or several at a time in processes of their own."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn, env_override
from hydra.types import HydraContext
from omegaconf import OmegaConf, open_dict, read_write

from hydra_modal_jobs.files import append_json, json_lines, write, write_json
from hydra_modal_jobs.jobs.job import CONTROL, Job
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.run_job import outcome, perform, redacted_logs
from hydra_modal_jobs.worker.supervisor import Supervisor, seconds_of, word_of


def in_process(
    job: Job, context: HydraContext | None, secrets: Secrets
) -> tuple[dict[str, Any], JobReturn, BaseException | None]:
    """Run the job here and now. `KeyboardInterrupt` passes through, its time is kept."""
    control, launch = job.folder / CONTROL, job.payload["launch"]
    records = list(json_lines(control / "attempts.jsonl"))
    attempt = 1 + max((record["attempt"] for record in records), default=0)
    head = {"launch": launch, "attempt": attempt, "saved": ""}
    begun = time.time()
    append_json(control / "attempts.jsonl", {**head, "begun": begun, "gpu": None})
    config = job.config.copy()
    if job.payload["resume"] and job.payload["resume_key"]:
        with read_write(config), open_dict(config):
            OmegaConf.update(config, job.payload["resume_key"], True)
    try:
        with env_override(secrets.values()), redacted_logs(secrets):
            returned, error = perform(config, job.function(), context=context)
            result = outcome(returned, error, Secrets.here(secrets.names))
    except BaseException as stop:
        ended = {"ended": time.time(), "as": type(stop).__name__}
        append_json(control / "attempts.jsonl", {**head, **ended})
        raise
    ended_at = time.time()
    append_json(control / "attempts.jsonl", {**head, "ended": ended_at, "as": result["state"]})
    if error is not None:
        write(job.folder / "error.txt", result["failure"]["traceback"])
    result |= {
        "launch": launch,
        "attempts": attempt,
        "seconds": round(sum(seconds_of(records, control)) + ended_at - begun, 2),
        "usd": 0.0,
        "shape": job.payload["shape"],
        "ended": ended_at,
    }
    write_json(control / "result.json", result)
    return result, returned, error


class Pool:
    """Jobs in processes of their own, so many at a time; what they say comes by `events`."""

    def __init__(self, jobs: Sequence[Job], secrets: Secrets, *, most: int) -> None:
        self.events: queue.Queue[tuple[int, str | dict[str, Any]]] = queue.Queue()
        self._secrets = secrets
        self._supervisors: list[Supervisor] = []
        self._cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=most, thread_name_prefix="job")
        for job in jobs:
            self._pool.submit(self._run, job)

    def cancel(self) -> None:
        """End the running jobs; those that wait do not begin."""
        self._cancelled.set()
        for supervisor in self._supervisors:
            supervisor.cancel()

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _run(self, job: Job) -> None:
        num = job.num
        try:
            result: dict[str, Any] = {"state": "cancelled"}
            while not self._cancelled.is_set():
                payload = {**job.payload, "path": [entry for entry in sys.path if entry]}
                supervisor = Supervisor(
                    payload, emit=self._emit_of(num), variables=self._secrets.values()
                )
                self._supervisors.append(supervisor)
                result = supervisor.run()
                if not result.get("again"):
                    break
        except Exception as error:  # a full disk, say: it must reach who waits for the result
            said = {"kind": "user_code", "line": f"{type(error).__name__}: {error}"}
            result = {"state": "failed", "failure": said}
        self.events.put((num, {"result": result}))

    def _emit_of(self, num: int) -> Callable[[str], None]:
        def emit(line: str) -> None:
            self.events.put((num, word_of(line)))

        return emit


@contextmanager
def pool(jobs: Sequence[Job], secrets: Secrets, *, most: int) -> Iterator[Pool]:
    """A pool that is empty and gone afterwards."""
    running = Pool(jobs, secrets, most=most)
    try:
        yield running
    except BaseException:
        running.cancel()
        raise
    finally:
        running.close()

"""Runs one job in this process: `python -m hydra_modal_jobs.worker.run_job JOB_JSON`."""

from __future__ import annotations

import base64
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_modal_jobs.errors import Failure
from hydra_modal_jobs.files import read_json, write, write_json
from hydra_modal_jobs.jobs.job import CONTROL, load_config, load_task
from hydra_modal_jobs.secrets import Secrets


def perform(
    config: DictConfig,
    task: Callable[[Any], Any],
    *,
    context: HydraContext | None = None,
) -> tuple[JobReturn, BaseException | None]:
    """Run the task by Hydra's own `run_job`; the error, if any, is returned and not raised.

    A `KeyboardInterrupt` passes through.
    """
    setup_globals()
    if context is None:
        loader = ConfigLoaderImpl(config_search_path=ConfigSearchPathImpl())
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
    returned = JobReturn()
    try:
        returned = run_job(
            hydra_context=context,
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            returned.status, returned.return_value = JobStatus.COMPLETED, None
            return returned, None
        returned.status, returned.return_value = JobStatus.FAILED, error
    if returned.status is JobStatus.COMPLETED:
        return returned, None
    failure = returned._return_value
    assert isinstance(failure, BaseException)
    return returned, failure


def outcome(returned: JobReturn, error: BaseException | None, secrets: Secrets) -> dict[str, Any]:
    """The result as plain data; an error's traceback goes into a file of its own."""
    record: dict[str, Any] = {
        "state": "done" if error is None else "failed",
        "working_dir": returned.working_dir,
        "task_name": returned.task_name,
    }
    if error is None:
        record |= pack(returned._return_value)
    else:
        failure = Failure.of(error)
        record["failure"] = {
            "kind": failure.kind,
            "line": secrets.redact(failure.line),
            "traceback": secrets.redact(failure.traceback),
        }
    return record


@contextmanager
def redacted_logs(secrets: Secrets) -> Iterator[None]:
    """What is logged goes into files past whoever reads the job's output."""
    make = logging.getLogRecordFactory()

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(Exception):  # a message that does not fit its arguments is logging's to tell
            text = record.getMessage()
            if text != secrets.redact(text):
                record.msg, record.args = secrets.redact(text), ()
            if record.exc_info:
                record.exc_text = secrets.redact(
                    logging.Formatter().formatException(record.exc_info)
                )
        return record

    logging.setLogRecordFactory(redacted)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


def pack(value: Any) -> dict[str, Any]:
    """A returned value as JSON if it is the same after it, else by value."""
    try:
        if json.loads(json.dumps(value)) == value and not isinstance(value, tuple):
            return {"value": value}
    except (TypeError, ValueError):
        pass
    import cloudpickle

    try:
        return {"pickle": base64.b64encode(cloudpickle.dumps(value)).decode()}
    except Exception as error:
        return {"value": None, "lost": f"the returned value cannot be pickled: {error}"}


def unpack(record: dict[str, Any]) -> Any:
    if "pickle" not in record:
        return record.get("value")
    import pickle

    return pickle.loads(base64.b64decode(record["pickle"]))


def main() -> None:
    begun = time.time()
    _end_with_parent()
    payload = read_json(Path(sys.argv[1]))
    folder = Path(payload["dir"]) / payload["subdir"]
    is_first = int(os.environ.get("RANK", "0")) == 0
    secrets = Secrets.here(payload["secret_names"])
    known = [os.getcwd(), *payload.get("path", [])]  # as in the process that launched it
    sys.path[:0] = [entry for entry in known if entry not in sys.path]
    try:
        task = load_task(payload["task"])
        config = load_config(payload)
        JobRuntime.instance().set("name", payload["name"])
        with read_write(config), open_dict(config):
            if payload.get("resume_key"):
                OmegaConf.update(config, payload["resume_key"], True)
            if not is_first:
                config.hydra.output_subdir = None  # one rank writes
        with redacted_logs(secrets):
            returned, error = perform(config, task)
    except Exception as failed:  # before the task: an import, a configuration
        returned, error = JobReturn(), failed
    except KeyboardInterrupt as stop:
        if is_first:
            print(str(stop) or "interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    record = outcome(returned, error, secrets) | {"begun": begun, "ended": time.time()}
    ending = folder / CONTROL / "outcome.json"
    # The first one's result, or the first failure: what the others do then comes of it.
    if (is_first or error is not None) and not ending.exists():
        write_json(ending, record)
        if error is not None:
            write(folder / "error.txt", record["failure"]["traceback"])
            said = "line" if isinstance(error, HydraException) else "traceback"
            print(record["failure"][said], file=sys.stderr, flush=True)
    if error is not None:
        sys.exit(1)


def _end_with_parent() -> None:
    """A job must not go on when what watches it was killed: the next attempt would meet it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()

"""Runs one job in this process: `python -m hydra_modal_jobs.worker.run_job ATTEMPT_JSON`.

Hydra's `run_job` needs a `HydraContext`, whose parts are private names of Hydra (of 1.3.8).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
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
from hydra_modal_jobs.files import read_json, write_atomically
from hydra_modal_jobs.jobs.result import Outcome, pack
from hydra_modal_jobs.jobs.serialize import load_config, load_task
from hydra_modal_jobs.paths import ERROR_FILE
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.text import print_line

_INTERRUPTED_STATUS = 130


def perform(
    config: DictConfig,
    task: Callable[[Any], Any],
    *,
    context: HydraContext | None = None,
) -> tuple[JobReturn, BaseException | None]:
    """Run the task by Hydra's own `run_job`. Return its error, if any, instead of raising it.

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


def outcome_of(returned: JobReturn, error: BaseException | None, secrets: Secrets) -> Outcome:
    """Return what `perform` returned as plain data, without secret values."""
    outcome = Outcome(
        state="done" if error is None else "failed",
        working_dir=returned.working_dir or "",
        task_name=returned.task_name or "",
    )
    if error is None:
        outcome.returned = pack(returned._return_value)
    else:
        failure = Failure.of(error)
        line, traceback = secrets.redact(failure.line), secrets.redact(failure.traceback)
        outcome.failure = replace(failure, line=line, traceback=traceback)
    return outcome


def set_resume(config: DictConfig, key: str | None) -> None:
    """Set the application's setting `key`, if there is one, that says to continue a job."""
    if key:
        with read_write(config), open_dict(config):
            OmegaConf.update(config, key, True)


@contextmanager
def redacted_logs(secrets: Secrets) -> Iterator[None]:
    """Keep secret values out of log records, which reach files without passing a supervisor."""
    make_record = logging.getLogRecordFactory()

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        with suppress(Exception):  # logging itself reports a message that does not fit its values
            text = record.getMessage()
            if text != secrets.redact(text):
                record.msg, record.args = secrets.redact(text), ()
            if record.exc_info:
                record.exc_text = secrets.redact(
                    logging.Formatter().formatException(record.exc_info)
                )
        return record

    logging.setLogRecordFactory(make_redacted)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)


def main() -> None:
    """Run the job of `attempt.json` and write `outcome.json` beside it."""
    _end_with_parent()
    attempt = Path(sys.argv[1])
    payload = read_json(attempt)
    folder = Path(payload["dir"]) / payload["subdir"]
    is_first = int(os.environ.get("RANK", "0")) == 0
    secrets = Secrets.from_environment(payload["secret_names"])
    search_path = [os.getcwd(), *payload.get("path", [])]  # that of the launching process
    sys.path[:0] = [entry for entry in search_path if entry not in sys.path]
    error: BaseException | None = None
    try:
        _listen_to_interrupts(True)  # the supervisor blocked them while Python started
        outcome, error = _run(payload, secrets, is_first=is_first)
    except KeyboardInterrupt as stop:
        outcome = Outcome(state="interrupted", last_words=secrets.redact(str(stop)))
    _listen_to_interrupts(False)
    path = attempt.with_name("outcome.json")
    # Rank 0 writes its result; a failure is written by the first rank that fails, since the
    # failures of the others are consequences of it.
    if (is_first or error is not None) and not path.exists():
        outcome.write(path)
        if outcome.failure is not None:
            with suppress(OSError):  # the disk may be full, which is then the failure itself
                write_atomically(folder / ERROR_FILE, outcome.failure.traceback)
        if payload["prints_end"]:
            _print_end(outcome, error)
    if outcome.state == "interrupted":
        sys.exit(_INTERRUPTED_STATUS)
    sys.exit(0 if error is None else 1)


def _run(
    payload: dict[str, Any], secrets: Secrets, *, is_first: bool
) -> tuple[Outcome, BaseException | None]:
    try:
        task = load_task(payload["task"])
        config = load_config(payload)
        JobRuntime.instance().set("name", payload["name"])
        set_resume(config, payload.get("resume_key"))
        if not is_first:
            with read_write(config), open_dict(config):
                config.hydra.output_subdir = None  # rank 0 alone writes it
        with redacted_logs(secrets):
            returned, error = perform(config, task)
    except Exception as failed:  # before the task began: an import or the configuration
        returned, error = JobReturn(), failed
    return outcome_of(returned, error, secrets), error


def _print_end(outcome: Outcome, error: BaseException | None) -> None:
    """Print why the job did not return, for its log."""
    if outcome.failure is not None:
        is_for_users = isinstance(error, HydraException)
        text = outcome.failure.line if is_for_users else outcome.failure.traceback
        print_line(text, is_error=True)
    elif outcome.state == "interrupted":
        print_line(outcome.last_words or "interrupted", is_error=True)


def _listen_to_interrupts(listens: bool) -> None:
    """Unblock or block SIGINT; blocked, it would be raised nowhere but in the middle of an exit."""
    how = signal.SIG_UNBLOCK if listens else signal.SIG_BLOCK
    signal.pthread_sigmask(how, {signal.SIGINT})


def _end_with_parent() -> None:
    """End with the supervisor: a job that outlived it would meet the next attempt."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()

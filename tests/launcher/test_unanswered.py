"""Failing to ask is not taken for the end: only what a job itself ended with ends it."""

from __future__ import annotations

import builtins
import queue
import socket
import ssl
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import grpclib.exceptions
import hydra_modal_jobs
import modal
import pytest
from hydra_modal_jobs import JobFailed, LaunchRefused
from hydra_modal_jobs.backends import modal_app, modal_calls
from hydra_modal_jobs.backends.base import Backend, Ended, Event
from hydra_modal_jobs.backends.modal_calls import Calls
from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.files import write_json
from hydra_modal_jobs.follow import watch as watching
from hydra_modal_jobs.follow.screen import Row
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.manifest import RunManifest
from hydra_modal_jobs.worker.container import AnotherAttempt
from modal import exception

from tests.support.launching import wait_for


def of_a_container(error: BaseException) -> BaseException:
    """Return the error as Modal's client raises it for a container."""
    error.__line_cache__ = {}  # type: ignore[attr-defined]
    return error


FAILURES_TO_ASK: list[BaseException] = [
    ConnectionResetError("reset by peer"),
    BrokenPipeError(),
    socket.gaierror(-2, "Name or service not known"),
    ssl.SSLError("record layer failure"),
    OSError(101, "Network is unreachable"),
    grpclib.exceptions.StreamTerminatedError("Connection lost"),
    exception.ConnectionError("Could not connect"),
    exception.ServiceError("down"),
    exception.AuthError("Token revoked"),
    exception.PermissionDeniedError("no"),
    exception.NotFoundError("no such call"),
    exception.ClientClosed(),
    RuntimeError("Event loop is closed"),
]
ENDS: list[tuple[BaseException, str]] = [
    (exception.FunctionTimeoutError("too long"), "timeout"),
    (exception.RemoteError("the container is gone"), "crash"),
    (exception.InternalFailure("of Modal"), "user_code"),
    (exception.OutputExpiredError(), "refused"),
    (AnotherAttempt("transient", "ECC error"), "transient"),
    (ModuleNotFoundError("No module named 'x'"), "import_error"),
    (of_a_container(ValueError("no such luck")), "user_code"),
    (of_a_container(ConnectionResetError("in the job")), "transient"),
    (SystemExit(3), "user_code"),
]


class Call:
    """Stands for a call of Modal's; `answers` are raised or returned, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def get(self, timeout: float) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(modal_calls, "_POLL_SECONDS", 0.01)

    def set_answers(*answers: Any) -> None:
        call = Call(*answers)
        monkeypatch.setattr(modal.FunctionCall, "from_id", lambda _: call)

    return set_answers


def follow() -> tuple[Calls, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    bring: Callable[[int], tuple[JobResult | None, bool]] = lambda num: (None, False)  # noqa: E731
    return Calls("ap-1", {0: "fc-1"}, events, bring=bring, follows_logs=False), events


@pytest.mark.parametrize("error", FAILURES_TO_ASK, ids=repr)
def test_a_job_whose_state_cannot_be_asked_for_goes_on(
    answers: Callable[..., None], error: BaseException
) -> None:
    answers(error)
    with pytest.raises(type(error)):
        modal_app.is_pending("fc-1")
    answers(error, builtins.TimeoutError(), {"state": "done", "value": 3})
    calls, events = follow()
    ended = wait_for(events.get)
    assert isinstance(ended, Ended) and (ended.result.state, ended.result.value) == ("done", 3)
    calls.drain(1.0)


@pytest.mark.parametrize(("error", "kind"), ENDS, ids=repr)
def test_what_a_job_ended_with_ends_it(
    answers: Callable[..., None], error: BaseException, kind: str
) -> None:
    answers(error)
    assert not modal_app.is_pending("fc-1")
    calls, events = follow()
    ended = wait_for(events.get)
    assert isinstance(ended, Ended) and ended.result.failure is not None
    assert (ended.result.state, ended.result.failure.kind) == ("failed", kind)
    calls.drain(1.0)


class Deaf(Backend):
    """A place where jobs go on whatever is asked of it."""

    name = "deaf"
    title = "nowhere"
    is_remote = True
    closed = False

    def submit(self, jobs: Any, secrets: Any) -> None: ...

    def events(self, timeout_seconds: float) -> list[Event]:
        return []

    def cancel(self) -> None: ...

    def stop_command(self, nums: Collection[int]) -> str:
        return "deaf stop"

    def close(self, *, keeps_others: bool = False) -> None:
        self.closed = True


def test_a_cancel_that_is_not_confirmed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_CANCEL_SECONDS", 0.0)
    manifest = RunManifest(tmp_path / "x", {"jobs": [{"num": 0, "subdir": "0", "call": "fc-1"}]})
    backend = Deaf(manifest, ModalJobsConf())
    with pytest.raises(JobFailed, match=r"not confirmed.*runs cancel x, or: deaf stop"):
        watching.watch(backend, {0: Row(0, "x", "T4")}, is_quiet=True, cancels=True)
    assert not backend.closed and manifest.state(manifest.jobs[0]) == "launched"


@pytest.mark.parametrize(
    "words", ["runs cancel", "runs attach", "runs logs", "runs pull", "resume"]
)
@pytest.mark.parametrize("has_account", [True, False])
def test_each_command_answers_without_a_network_and_says_what_may_cost_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, has_account: bool
) -> None:
    entry = {"num": 0, "subdir": "0", "backend": "modal", "call": "fc-1", "overrides": []}
    entry |= {"volume": "v", "remote": "/o/far/0", "mount": "/o", "skip": "", "launch": "a"}
    app = {"app": {"id": "ap-77", "name": "far", "url": "https://modal.com/ap-77"}}
    write_json(tmp_path / "far/launch.json", {"name": "far", "jobs": [entry | app]})

    def unreachable(*_: Any, **__: Any) -> None:
        raise exception.ConnectionError("no route to host")

    monkeypatch.setattr(modal_app, "has_account", lambda: has_account)
    for kind, name in ((modal.Client, "from_env"), (modal.FunctionCall, "from_id")):
        monkeypatch.setattr(kind, name, unreachable)
    monkeypatch.setattr(modal.Volume, "from_name", unreachable)
    verb, *action = words.split()
    with pytest.raises(LaunchRefused, match=r"modal app stop ap-77$") as refused:
        getattr(hydra_modal_jobs, verb)([*action, "far"], root=tmp_path)
    assert "1 job of far may still run and cost money" in str(refused.value)
    assert not (tmp_path / "far/0/.job/result.json").exists()

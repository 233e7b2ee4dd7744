"""Modal's errors: which say how a job ended, which pass by themselves, what each means."""

from __future__ import annotations

import builtins
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpclib.exceptions
from modal import exception

from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.worker.container import AnotherAttempt

T = TypeVar("T")

ANSWER_SECONDS = 6.0

# The service does not answer now, which says nothing about the jobs.
UNREACHABLE = (
    exception.ClientClosed,
    exception.ConnectionError,
    exception.InternalError,
    exception.ResourceExhaustedError,
    exception.ServiceError,
    # The client lets errors of the connection itself pass.
    grpclib.exceptions.ProtocolError,
    grpclib.exceptions.StreamTerminatedError,
    builtins.ConnectionError,
    socket.gaierror,
    ssl.SSLError,
)
_ENDS_OF_CALLS = (
    AnotherAttempt,
    exception.ExecutionError,
    exception.FunctionTimeoutError,
    exception.InternalFailure,
    exception.OutputExpiredError,
    exception.RemoteError,
    ImportError,
    SystemExit,
)


def ends_call(error: BaseException) -> bool:
    """Return whether the error of a call's `get` is how the call ended.

    Any other is a failure to ask: the network, the account, the client itself. What a container
    raised has its lines of source with it.
    """
    return isinstance(error, _ENDS_OF_CALLS) or hasattr(error, "__line_cache__")


def answer(ask: Callable[[], T], *, advice: str) -> T:
    """Return what `ask` gets from the service, within seconds.

    Raises `LaunchRefused` with the service's reason and the advice if asking fails.
    """
    try:
        return within(ANSWER_SECONDS, ask)
    except exception.AuthError as error:
        text = f"Modal does not know this account ({error})"
    except Exception as error:
        text = f"Modal does not answer ({str(error) or type(error).__name__})"
    raise LaunchRefused(" ".join(f"{text}; {advice}".split()))


@contextmanager
def as_refusal(then: str = "nothing was started") -> Iterator[None]:
    """Turn an error of the service into a `LaunchRefused` that names what to change.

    `then` says what has become of the matter where the service does not answer.
    """
    try:
        yield
    except exception.AuthError as error:
        line = f"Modal does not know this account ({error}); run: modal token new"
    except UNREACHABLE as error:
        line = f"Modal cannot be reached ({error}); {then}"
    except exception.ImageBuildError as error:
        line = (
            f"hydra.launcher.image: the image could not be built: {error} "
            f"(its log: modal image logs {error.image_id})"
        )
    except exception.NotFoundError as error:
        line = f"{error} (hydra.launcher.secrets.modal names Modal secrets)"
    except exception.InvalidError as error:
        setting = "hydra.launcher.gpu: " if "gpu" in str(error).lower() else ""
        line = f"{setting}{error}"
    except exception.Error as error:
        line = f"Modal refused: {error}"
    else:
        return
    raise LaunchRefused(" ".join(line.split()))


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what `ask` returns. Raises `ConnectionError` if that takes longer than `seconds`.

    Modal's client itself tries for a minute to reach the service.
    """
    answers: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise exception.ConnectionError(f"no answer in {seconds:.0f} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer

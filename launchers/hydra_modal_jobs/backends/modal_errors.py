"""Modal's errors: which of them pass by themselves, and what each means to the user."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from modal import exception

from hydra_modal_jobs.errors import LaunchRefused

T = TypeVar("T")

# The service does not answer now, which says nothing about the jobs.
UNREACHABLE = (
    exception.ConnectionError,
    exception.InternalError,
    exception.ResourceExhaustedError,
    exception.ServiceError,
)


@contextmanager
def as_refusal() -> Iterator[None]:
    """Turn an error of the service into a `LaunchRefused` that names what to change."""
    try:
        yield
    except exception.AuthError as error:
        line = f"Modal does not know this account ({error}); run: modal token new"
    except UNREACHABLE as error:
        line = f"Modal cannot be reached ({error}); nothing was started"
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

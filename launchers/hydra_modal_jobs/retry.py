"""The one retry policy of the launcher's calls to a service that may be away for a while."""

from __future__ import annotations

import threading

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_fixed,
)

_MAX_TRIES = 60
_PAUSE_SECONDS = 1.0


def retrying(errors: tuple[type[BaseException], ...], *, unless: threading.Event) -> Retrying:
    """Return a policy that calls a function again after these errors, once a second for a minute.

    It gives up early, and raises the last error, once the event `unless` is set.
    """
    return Retrying(
        retry=retry_if_exception_type(errors),
        stop=stop_after_attempt(_MAX_TRIES) | stop_when_event_set(unless),
        wait=wait_fixed(_PAUSE_SECONDS),
        sleep=sleep_using_event(unless),
        reraise=True,
    )

"""One policy for retries: pauses that double, up to a limit of time or of attempts (tenacity)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying
from tenacity.retry import retry_if_exception
from tenacity.stop import stop_after_attempt, stop_any, stop_base, stop_before_delay, stop_never

T = TypeVar("T")

_random = Random()  # not the global stream, which a seeded run draws from


def pause_seconds(retries: int, *, first_seconds: float, longest_seconds: float) -> float:
    """Return the pause after `retries` retries, in seconds.

    The pause doubles with each retry up to `longest_seconds`, and between half and all of that is
    drawn at random, so that many jobs that failed together do not all come back together.
    """
    longest = min(longest_seconds, first_seconds * 2.0 ** min(retries, 30))
    return longest * _random.uniform(0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When a failed call is tried again; without a limit, until it succeeds.

    >>> policy = RetryPolicy(limit_seconds=60, is_temporary=lambda e: isinstance(e, OSError))
    >>> policy.call(download, url)
    >>> await policy.call_async(ask, question)

    When the limit is reached, the error of the latest attempt is raised as it is. An attempt that
    is under way is not interrupted, so a call should have a timeout of its own.
    """

    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 15.0
    limit_seconds: float | None = None  # no retry starts later than this after the first attempt
    max_attempts: int | None = None
    is_temporary: Callable[[Exception], bool] = lambda error: True  # can another try succeed?
    # The pause that a server asked for, in seconds; None where it did not ask.
    requested_pause: Callable[[Exception], float | None] = lambda error: None

    def call(
        self,
        function: Callable[..., T],
        *args: Any,
        sleep: Callable[[float], Any] = time.sleep,
        **kwargs: Any,
    ) -> T:
        """Call the function until it succeeds; `sleep` waits between the attempts."""
        return Retrying(sleep=sleep, **self._settings())(function, *args, **kwargs)

    async def call_async(
        self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any
    ) -> T:
        """Await the coroutine function until it succeeds."""
        return await AsyncRetrying(**self._settings())(function, *args, **kwargs)

    def _settings(self) -> dict[str, Any]:
        stops: list[stop_base] = []
        if self.limit_seconds is not None:
            stops.append(stop_before_delay(self.limit_seconds))
        if self.max_attempts is not None:
            stops.append(stop_after_attempt(self.max_attempts))
        return {
            "stop": stop_any(*stops) if stops else stop_never,
            "wait": self._pause,
            "retry": retry_if_exception(self._may_retry),
            "reraise": True,
        }

    def _may_retry(self, error: BaseException) -> bool:
        # A KeyboardInterrupt or a cancelled task is no failure of the call.
        return isinstance(error, Exception) and self.is_temporary(error)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        requested = self.requested_pause(error) if isinstance(error, Exception) else None
        if requested is not None:
            return requested
        return pause_seconds(
            state.attempt_number - 1,
            first_seconds=self.first_pause_seconds,
            longest_seconds=self.longest_pause_seconds,
        )

"""What the errors of an OpenAI-compatible API mean: for one request, for all, or for a moment."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference.api_reply import MalformedReply

_TEMPORARY_STATUSES = (408, 409, 425, 429)  # and all from 500


class ApiError(Exception):
    """A request failed for good; others may still succeed."""


class TemporaryApiError(Exception):
    """A request failed, and may succeed when it is sent again."""

    def __init__(self, reason: str, *, retry_after_seconds: float | None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds  # as the server asked; None if it did not


def status_of(error: Exception) -> int | None:
    """Return the HTTP status with which the server refused; None where it did not."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def is_temporary(error: Exception) -> bool:
    """Tell whether the same request may succeed later."""
    status = status_of(error)
    return status is None or status in _TEMPORARY_STATUSES or status >= 500


def failure_of_all(
    error: Exception, config: EndpointConfig, *, setting: str, model: str
) -> UserError | None:
    """Return the message for an error that every request would meet; None for any other."""
    status = status_of(error)
    address = f"{setting}.base_url={config.base_url}"
    if status == 401:
        return UserError(
            f"{address}: refuses the key; see the variable that {setting}.api_key_env="
            f"{config.api_key_env} names"
        )
    if status == 402 or str(getattr(error, "code", "")) == "insufficient_quota":
        return UserError(f"{address}: the account has no credit left")
    if status == 404:
        return UserError(f"{address}: knows no such address or no model {model} (404); see both")
    return None


def reason(error: Exception, config: EndpointConfig, *, setting: str) -> str:
    """Return why one request failed, in a few words."""
    if isinstance(error, TimeoutError) or type(error).__name__ == "APITimeoutError":
        return f"no answer within {setting}.timeout={config.timeout:g} s"
    if isinstance(error, MalformedReply):
        return str(error)
    if isinstance(error, ValueError):
        return "the answer is no JSON"
    status = status_of(error)
    if status is not None:
        return f"status {status}: {one_line(str(error))}"
    cause = error.__cause__ or error
    return f"the connection failed ({type(cause).__name__})"


def retry_after_seconds(error: Exception) -> float | None:
    """Return the pause that the server asks for (Retry-After); None if it does not ask."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    milliseconds, seconds = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            pause = float(milliseconds) / 1000
        elif seconds is not None:
            pause = _seconds_until(seconds)
        else:
            return None
    except ValueError:
        return None
    return max(0.0, pause) if pause == pause else None  # not for NaN


def _seconds_until(retry_after: str) -> float:
    """Read a Retry-After header: a number of seconds, or a date. Raises `ValueError`."""
    try:
        return float(retry_after)
    except ValueError:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()

"""What the errors of an OpenAI-compatible API mean: for one request, for all, or for a moment."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference.api_reply import MalformedReply
from rl_experiments.inference.api_words import decoded, words_of

_TEMPORARY_STATUSES = (408, 409, 425, 429)  # and all from 500 but these:
_NEVER_SERVED_STATUSES = (501, 505)
_FULL_CONTEXT_STATUSES = (400, 413, 422, 500)
# The words of vLLM, SGLang, llama.cpp, OpenAI, Anthropic, Google, Mistral, Bedrock and others.
_FULL_CONTEXT = re.compile(
    r"context[ _-]?(length|window|size|limit)|maximum (context|prompt|input|sequence)"
    r"|(prompt|input|request)( is|_is)? too long|too many (input |total )?tokens"
    r"|(input|prompt|request).{0,40}tokens?.{0,40}exceed"
    r"|exceeds?.{0,60}(maximum|max)[ _](number of |input |allowed |model )?(tokens|len)"
    r"|tokens.{0,40}must be <=|reduce the length|longer than the (maximum|model)"
    r"|max_(model|seq|input)_len",
    re.IGNORECASE,
)
_LIMIT_OF_REPLY = re.compile(r"max_(completion_|new_|output_)?tokens\b.{0,40}(too (large|high)|>)")
_RATE = re.compile(r"per (minute|day|hour)|rate.?limit|\b[tr]p[md]\b", re.IGNORECASE)


class ApiError(Exception):
    """A request failed for good; others may still succeed."""


class FullContext(ApiError):
    """A request is longer than the model's context: its conversation has no further turn."""


class TemporaryApiError(Exception):
    """A request failed, and may succeed when it is sent again.

    `is_changed` says that it will be sent otherwise, so that there is nothing to wait for.
    """

    def __init__(
        self, reason: str, *, retry_after_seconds: float | None = None, is_changed: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds  # as the server asked; None if it did not
        self.is_changed = is_changed


def status_of(error: Exception) -> int | None:
    """Return the HTTP status with which the server refused; None where it did not."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def is_temporary(error: Exception) -> bool:
    """Tell whether the same request may succeed later."""
    status = status_of(error)
    if status is None or status in _TEMPORARY_STATUSES:
        return True
    return status >= 500 and status not in _NEVER_SERVED_STATUSES


def server_words(error: Exception) -> str:
    """Return the words of a server's error; an empty text if there are none."""
    if isinstance(error, MalformedReply):
        return str(error)
    response = getattr(error, "response", None)
    if response is None:
        return ""
    try:
        text = response.text
    except Exception:  # the body was not received
        return one_line(str(error))
    return words_of(decoded(text))


def is_full_context(error: Exception, *, is_first_turn: bool) -> bool:
    """Tell whether the server refused a conversation because it is too long for the model.

    Where already the first turn has no room for `max_tokens`, a setting is wrong instead.
    """
    status, words = status_of(error), server_words(error)
    if status not in _FULL_CONTEXT_STATUSES or _RATE.search(words):
        return False
    code = str(getattr(error, "code", None))
    if is_first_turn and _LIMIT_OF_REPLY.search(words):
        return False
    return code == "context_length_exceeded" or _FULL_CONTEXT.search(words) is not None


def failure_of_all(
    error: Exception, config: EndpointConfig, *, setting: str, model: str
) -> UserError | None:
    """Return the message for an error that every request would meet; None for any other."""
    status = status_of(error)
    address = f"{setting}.base_url={config.base_url}"
    words = f"status {status}: {server_words(error)}"
    if status == 401:
        key = f"{config.api_key_env}, which {setting}.api_key_env names"
        asks = f"refuses the key in {key}" if config.api_key_env else "asks for a key"
        remedy = "" if config.api_key_env else f"; name its variable in {setting}.api_key_env"
        return UserError(f"{address}: {asks} ({words}){remedy}")
    kinds = (getattr(error, "code", None), getattr(error, "type", None))
    if status == 402 or "insufficient_quota" in kinds:
        return UserError(f"{address}: the account has no credit left ({words})")
    if status in (404, 405):
        return UserError(f"{address}: cannot ask {model} there ({words}); see both")
    if (why := _why_unsendable(error)) is not None:
        return UserError(f"{address}: no request can be sent ({why})")
    return None


def is_connection_failure(error: Exception) -> bool:
    """Tell whether no connection to the server came about."""
    return not _kinds(error).isdisjoint(("ConnectError", "ConnectTimeout", "ProxyError"))


def is_unpaid(error: Exception) -> bool:
    """Tell whether the server has surely done nothing that costs: it refused, or was not there."""
    is_refused = status_of(error) is not None and not isinstance(error, MalformedReply)
    return is_refused or is_connection_failure(error)


def reason(error: Exception, config: EndpointConfig, *, setting: str) -> str:
    """Return why one request failed, in a line with the server's own words."""
    status = status_of(error)
    if isinstance(error, MalformedReply):
        return str(error) if status is None else f"{error} (status {status} inside of the answer)"
    if status is not None:
        return f"status {status}: {server_words(error)}"
    if is_connection_failure(error):
        return f"the connection failed ({_cause(error)})"
    if isinstance(error, TimeoutError) or type(error).__name__ == "APITimeoutError":
        return f"no answer within {setting}.timeout={config.timeout:g} s"
    return f"the connection failed ({_cause(error)})"


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


def _why_unsendable(error: Exception) -> str | None:
    """Return why the client cannot even write the request; None where it can."""
    unsendable = ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL", "UnicodeError")
    return None if _kinds(error).isdisjoint(unsendable) else _cause(error)


def _kinds(error: Exception) -> set[str]:
    """Return the names of the classes of what caused an error.

    By name, as the library beneath the client's is not ours to import.
    """
    return {kind.__name__ for kind in type(error.__cause__ or error).__mro__}


def _cause(error: Exception) -> str:
    cause = error.__cause__ or error
    words = one_line(str(cause))
    return f"{type(cause).__name__}: {words}" if words else type(cause).__name__


def _seconds_until(retry_after: str) -> float:
    """Read a Retry-After header: a number of seconds, or a date. Raises `ValueError`."""
    try:
        return float(retry_after)
    except ValueError:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()

"""The retry policy: how often, how long, and for which errors a call is tried again."""

from __future__ import annotations

import asyncio

import pytest

from rl_experiments.retry import RetryPolicy, pause_seconds


class Flaky:
    """A function that raises the given errors in turn, then returns "done"."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def asynchronously(self) -> str:
        return self()


def test_a_call_is_tried_until_it_succeeds_with_pauses_that_double() -> None:
    function, pauses = Flaky(*[OSError() for _ in range(6)]), list[float]()
    policy = RetryPolicy(first_pause_seconds=1.0, longest_pause_seconds=10.0)
    assert policy.call(function, sleep=pauses.append) == "done"
    assert function.calls == 7
    for pause, longest in zip(pauses, (1, 2, 4, 8, 10, 10), strict=True):
        assert longest / 2 <= pause <= longest


def test_after_the_last_attempt_its_own_error_is_raised() -> None:
    function = Flaky(*[OSError(f"attempt {n}") for n in range(1, 10)])
    with pytest.raises(OSError, match="attempt 4"):
        RetryPolicy(max_attempts=4).call(function, sleep=lambda seconds: None)
    assert function.calls == 4


def test_no_retry_starts_after_the_limit_of_time() -> None:
    function = Flaky(OSError("away"), OSError("away"))
    policy = RetryPolicy(limit_seconds=10.0, first_pause_seconds=100, longest_pause_seconds=100)
    with pytest.raises(OSError, match="away"):
        policy.call(function, sleep=lambda seconds: pytest.fail("it waited"))
    assert function.calls == 1


def test_a_lasting_error_is_raised_at_once() -> None:
    function = Flaky(ValueError("never"))
    policy = RetryPolicy(is_temporary=lambda error: isinstance(error, OSError))
    with pytest.raises(ValueError, match="never"):
        policy.call(function)
    assert function.calls == 1


def test_ctrl_c_is_not_retried() -> None:
    function = Flaky(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        RetryPolicy().call(function)
    assert function.calls == 1


def test_the_pause_that_a_server_asks_for_takes_precedence() -> None:
    pauses: list[float] = []
    policy = RetryPolicy(requested_pause=lambda error: float(str(error)) if str(error) else None)
    policy.call(Flaky(OSError("7"), OSError("0"), OSError()), sleep=pauses.append)
    assert pauses[:2] == [7.0, 0.0] and pauses[2] <= 2.0


def test_coroutines_are_retried_alike() -> None:
    function = Flaky(OSError(), OSError())
    policy = RetryPolicy(first_pause_seconds=0.0)
    assert asyncio.run(policy.call_async(function.asynchronously)) == "done"
    cancelled = Flaky(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(policy.call_async(cancelled.asynchronously))
    assert (function.calls, cancelled.calls) == (3, 1)


def test_pauses_neither_vanish_nor_overflow() -> None:
    for retries in (0, 10, 10_000):
        pause = pause_seconds(retries, first_seconds=0.5, longest_seconds=60.0)
        assert 0.25 <= pause <= 60.0
